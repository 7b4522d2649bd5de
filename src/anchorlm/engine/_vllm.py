from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields, replace
from importlib.util import find_spec
from time import monotonic
from typing import Any, Literal
from uuid import uuid4

import torch
from torch import Tensor

from anchorlm.engine._endpoint_reading import Written
from anchorlm.engine._endpoint_sequence import EndpointSequence
from anchorlm.engine._vllm_process import own
from anchorlm.engine._vllm_words import asked, one_step, written
from anchorlm.models import CausalModel, VLLMSettings
from anchorlm.records import Access, DefenseError, GenerationSettings, TooLongError, UserError

_log = logging.getLogger("anchorlm")

_END = object()
_TOLERANCE = 0.02
"""By how much the probabilities of one step may sum to more than 1: they come in float32."""


class VLLMEngine:
    """Sequences on a model that vLLM runs for this process alone, in a process of its own.

    vLLM batches whatever waits, and keeps what it has read of a prompt for other sequences that begin alike.

    Args:
        model: The checkpoint without its weights.
        server: vLLM's engine.
        top: Likeliest tokens of a step.
        timeout: Seconds for one answer.

    Attributes:
        model: The checkpoint as defenses see it: its weights are in vLLM.
        where: Where these are, in words.
    """

    access = Access.LOGPROBS
    lacks = ""
    continues = True
    where = "inside vLLM"
    max_rows = 1 << 30
    """How much it holds at once is vLLM's business: what is too much waits there."""
    max_tokens = 1 << 50

    def __init__(self, model: CausalModel, server: Any, *, top: int, timeout: float) -> None:
        self.model = model
        self._server = server
        self._top = min(top, model.vocab_size)
        self._timeout = timeout
        silent = torch.zeros(model.vocab_size, dtype=torch.bool)
        silent[list(model.silent_ids)] = True
        self._silent = silent

    @classmethod
    def start(cls, settings: VLLMSettings) -> VLLMEngine:
        """Starts vLLM, and waits until it has loaded the model.

        Raises:
            UserError: vLLM is not installed, cannot run the model, or does not know an option.
        """
        model = cls.outline(settings)
        # vLLM starts tasks on the loop of the thread that it is started on, and this may be a caller's.
        thread = ThreadPoolExecutor(1)
        own()
        try:
            server = thread.submit(_started, settings, model).result()
        finally:
            thread.shutdown(wait=False)  # Ctrl-C does not wait until everything is loaded
        # How much vLLM reads may be less than the model was made for.
        vars(model)["context_length"] = min(model.context_length, int(server.model_config.max_model_len))
        engine = cls(model, server, top=settings.top_logprobs, timeout=settings.timeout)
        atexit.register(engine._end)  # before Python ends vLLM's processes
        return engine

    @staticmethod
    def outline(settings: VLLMSettings) -> CausalModel:
        """The model as far as it is known before vLLM starts.

        Raises:
            UserError: vLLM is not installed, or the model is not there or is no whole checkpoint.
        """
        if find_spec("vllm") is None:
            raise UserError("A model in vLLM needs vLLM: pip install 'anchorlm[vllm]'.")
        model = CausalModel.outline(settings)
        if model.origin is not None and (model.origin.adapters or model.origin.base.endswith(".gguf")):
            raise UserError(
                f"{model.name} is no whole checkpoint, as vLLM needs here: write one with anchorlm convert, and name "
                "its folder as path."
            )
        model = replace(model, processor=None)  # images do not go to vLLM
        if isinstance(limit := settings.options.get("max_model_len"), int) and limit > 0:
            vars(model)["context_length"] = min(model.context_length, limit)
        return model

    @property
    def told(self) -> str:
        """What it is, in a phrase."""
        from vllm import __version__

        reads = f"{self.model.context_length:,} tokens"
        return f"vLLM {__version__}, prompts go as tokens, {self._top:,} likeliest tokens, reads {reads}"

    @property
    def place(self) -> str:
        """Where it runs and in which number format, in a few words."""
        return f"inside vLLM, in {str(self._server.model_config.dtype).removeprefix('torch.')}"

    def close(self) -> None:
        """Ends vLLM's processes."""
        atexit.unregister(self._end)
        self._server.shutdown()
        self._server.shutdown = lambda timeout=None: None  # vLLM calls it when Python clears up, and would fail

    def _end(self) -> None:
        """The same when all else is over: no one waits any more for what vLLM has to say about it."""
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        self.close()

    @asynccontextmanager
    async def open(self, ids: Sequence[int], *, rows: int = 1, room: int = 0) -> AsyncIterator[EndpointSequence]:
        """A sequence that starts with `ids`. How many there are at once is vLLM's business.

        Raises:
            UserError: The prompt is empty, or leaves no room in what the model reads.
        """
        limit = self.model.context_length
        if not ids:
            raise UserError("The prompt is empty: give some text.")
        if len(ids) >= limit:
            raise TooLongError(
                f"The prompt has {len(ids)} tokens, but {self.model.name} reads {limit} with its answer: shorten it."
            )
        root = EndpointSequence(self, ids, len(ids), min(len(ids) + room, limit))
        try:
            yield root
        finally:
            root.close()

    async def distribution(self, ids: Sequence[int], prompt_length: int) -> tuple[Tensor, float]:
        """Log-probabilities (V,) of the next token as far as vLLM names tokens, and the mass that is left.

        Raises:
            DefenseError: vLLM gave none.
        """
        answer = await self._whole(ids, one_step(self._top))
        named = answer.logprobs
        if not named:
            raise self._wrong("it has no log-probabilities")
        logits = torch.full((len(self._silent),), -torch.inf)
        tokens, values = torch.tensor(named.token_ids), torch.tensor(named.logprobs, dtype=torch.float32)
        there = tokens < len(logits)
        logits[tokens[there]] = values[there]
        logits[self._silent] = -torch.inf
        mass = float(logits.exp().sum())
        if not 0 < mass <= 1 + _TOLERANCE:  # not a number is neither
            raise self._wrong("its log-probabilities are no distribution")
        return logits, max(0.0, 1.0 - mass)

    async def completed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int
    ) -> tuple[Written, Literal["stop", "length"]]:
        """What the model goes on with, and why it ends.

        Raises:
            DefenseError: vLLM gave no whole answer.
        """
        answer = await self._whole(ids, asked(self.model, generation, room, self._top))
        finish = self._finish(answer)
        found = written(answer)
        if finish == "length" and not found.ids:
            raise self._wrong("it is empty, and has not ended")
        return found, finish

    async def streamed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int
    ) -> AsyncGenerator[Written, None]:
        """The same in pieces, as they come.

        Raises:
            DefenseError: vLLM ended before the answer did.
        """
        answers = self._answers(ids, asked(self.model, generation, room, self._top, streamed=True))
        finish = None
        async with aclosing(answers):
            async for answer in answers:
                finish = answer.finish_reason and self._finish(answer)
                if (found := written(answer)).ids or found.ended:
                    yield found
        if finish is None:
            raise self._wrong("it was cut off")

    async def _whole(self, ids: Sequence[int], params: Any) -> Any:
        """The one answer to a prompt, when it has ended."""
        answers = self._answers(ids, params)
        async with aclosing(answers):
            async for answer in answers:
                if answer.finish_reason is not None:
                    return answer
        raise self._wrong("it was cut off")

    async def _answers(self, ids: Sequence[int], params: Any) -> AsyncGenerator[Any, None]:
        """What vLLM says to a prompt. Who leaves early ends the request in vLLM, too."""
        from vllm.inputs import tokens_input

        until = monotonic() + self._timeout
        outputs = self._server.generate(tokens_input(list(ids)), params, f"anchorlm-{uuid4().hex}")
        try:
            while True:
                # No deadline is open while the answer is with the caller: it would cancel other work.
                async with asyncio.timeout(max(until - monotonic(), 0.0)):
                    output: Any = await anext(outputs, _END)
                if output is _END:
                    return
                yield output.outputs[0]
        except TimeoutError:
            raise DefenseError(
                f"vLLM gave no answer within {self._timeout:g} seconds: raise timeout, or send fewer requests at once."
            ) from None
        except (DefenseError, UserError):
            raise
        except Exception as error:  # of vLLM, in many classes
            raise self._failed(error, params) from None
        finally:
            await outputs.aclose()

    def _failed(self, error: Exception, params: Any) -> Exception:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        said = " ".join(str(error).split())[:160].rstrip(".")
        if isinstance(error, EngineDeadError):
            return DefenseError("vLLM has ended: see what it printed, and start the guard again.")
        if isinstance(error, VLLMClientError | ValueError) and params.structured_outputs is not None:
            return UserError(f"vLLM does not take this response_format ({said}): change it, or leave it out.")
        _log.warning("vLLM failed: %s", error)
        return DefenseError(f"vLLM gave no answer ({type(error).__name__}: {said}): see what it printed.")

    def _finish(self, answer: Any) -> Literal["stop", "length"]:
        if answer.finish_reason in ("stop", "length"):
            found: Literal["stop", "length"] = answer.finish_reason
            return found
        raise self._wrong(f"it ended because of {answer.finish_reason!r:.40}")

    @staticmethod
    def _wrong(what: str) -> DefenseError:
        return DefenseError(f"vLLM gave an answer that cannot be used: {what}.")


def _started(settings: VLLMSettings, model: CausalModel) -> Any:
    # What vLLM prints must not stand among answers. Its process cannot be forked from one that has used torch.
    for name, value in {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING",
                        "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}.items():  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(f"vLLM cannot be imported ({error}): pip install 'anchorlm[vllm]'.") from None
    known = {one.name for one in fields(AsyncEngineArgs)}
    if strange := [name for name in settings.options if name not in known]:
        raise UserError(f"vLLM has no option {strange[0]!r}: leave it out of the section options.")
    every = settings.top_logprobs >= model.vocab_size
    own = {"max_logprobs": -1 if every else settings.top_logprobs, "revision": settings.revision,
           "dtype": settings.dtype or "auto", "trust_remote_code": settings.trust_remote_code,
           "disable_log_stats": True, "enable_log_requests": False}  # fmt: skip
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(model=settings.path, **(own | settings.options)))
    except UserError:
        raise
    except Exception as error:  # of vLLM, in many classes
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"vLLM could not start {model.name} ({said}): see what it printed.") from None
