from __future__ import annotations

import asyncio
import atexit
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, cast
from uuid import uuid4

import torch
from torch import Tensor

from anchorlm.engine._endpoint_reading import Written
from anchorlm.engine._endpoint_sequence import EndpointSequence, Far
from anchorlm.engine._steering import Steering
from anchorlm.engine._vllm_activations import Inside, Steered
from anchorlm.engine._vllm_faults import elsewhere, failed, slow, wrong
from anchorlm.engine._vllm_process import own
from anchorlm.engine._vllm_start import outline, started
from anchorlm.engine._vllm_wishes import PLACES, Wishes
from anchorlm.engine._vllm_words import asked, one_step, written
from anchorlm.models import UNREAD, VLLM_ACCESS, CausalModel, VLLMSettings
from anchorlm.records import DefenseError, GenerationSettings, TooLongError, UserError

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
        access: How much of it is within reach.
        unread: How its activations can be had, where they cannot.
    """

    lacks = ""
    continues = True
    max_rows = 1 << 30
    """How much it holds at once is vLLM's business: what is too much waits there."""
    max_tokens = 1 << 50

    def __init__(self, model: CausalModel, server: Any, *, top: int, timeout: float, activations: bool = False) -> None:
        self.model = model
        self.access = VLLM_ACCESS[activations]
        self.unread = "" if activations else UNREAD
        self._server = server
        self._inside = Inside(server, timeout)
        self._top = min(top, model.vocab_size)
        self._timeout = timeout
        silent = torch.zeros(model.vocab_size, dtype=torch.bool)
        silent[list(model.silent_ids)] = True
        self._silent = silent
        self._loop: asyncio.AbstractEventLoop | None = None  # on which vLLM hands on what its process says

    @classmethod
    def start(cls, settings: VLLMSettings) -> VLLMEngine:
        """Starts vLLM, and waits until it has loaded the model.

        Raises:
            UserError: vLLM is not installed, cannot run the model, or does not know an option.
        """
        model = outline(settings)
        # vLLM starts tasks on the loop of the thread that it is started on, and this may be a caller's.
        thread = ThreadPoolExecutor(1)
        own()
        try:
            server = thread.submit(started, settings, model).result()
        finally:
            thread.shutdown(wait=False)  # Ctrl-C does not wait until everything is loaded
        # How much vLLM reads may be less than the model was made for.
        vars(model)["context_length"] = min(model.context_length, int(server.model_config.max_model_len))
        engine = cls(
            model, server, top=settings.top_logprobs, timeout=settings.timeout, activations=settings.activations
        )
        atexit.register(engine._leave)  # before Python ends vLLM's processes
        return engine

    outline = staticmethod(outline)

    @property
    def told(self) -> str:
        """What it is, in a phrase."""
        from vllm import __version__

        reads = f"{self.model.context_length:,} tokens"
        named = f"{self._top:,} likeliest tokens" if self.unread else "all tokens of a step"
        return f"vLLM {__version__}, prompts go as tokens, {named}, reads {reads}"

    @property
    def place(self) -> str:
        """Where it runs and in which number format, in a few words."""
        return f"inside vLLM, in {str(self._server.model_config.dtype).removeprefix('torch.')}"

    def close(self) -> None:
        """Ends vLLM's processes."""
        atexit.unregister(self._leave)
        self._server.shutdown()
        self._server.shutdown = lambda timeout=None: None  # vLLM calls it when Python clears up, and would fail

    def _leave(self) -> None:
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

    async def distribution(
        self, ids: Sequence[int], prompt_length: int, by: Steered | None = None
    ) -> tuple[Tensor, float]:
        """Log-probabilities (V,) of the next token as far as vLLM names tokens, and the mass that is left.

        Where the worker is ours, it has all of them.

        Raises:
            DefenseError: vLLM gave none.
        """
        if not self.unread:
            return await self._all(ids, by), 0.0
        answer = await self._whole(ids, one_step(self._top), by)
        named = answer.logprobs
        if not named:
            raise wrong("it has no log-probabilities")
        logits = torch.full((len(self._silent),), -torch.inf)
        tokens, values = torch.tensor(named.token_ids), torch.tensor(named.logprobs, dtype=torch.float32)
        there = tokens < len(logits)
        logits[tokens[there]] = values[there]
        logits[self._silent] = -torch.inf
        mass = float(logits.exp().sum())
        if not 0 < mass <= 1 + _TOLERANCE:  # not a number is neither
            raise wrong("its log-probabilities are no distribution")
        return logits, max(0.0, 1.0 - mass)

    async def _all(self, ids: Sequence[int], by: Steered | None) -> Tensor:
        """Log-probabilities (V,) of the next token."""
        logits = await self._kept(ids, Wishes(capture=uuid4().hex, logits=True), by)
        found = logits[: len(self._silent)].masked_fill(self._silent, -torch.inf).log_softmax(-1)
        if not found.exp().sum() > 0:  # not a number is not
            raise wrong("its logits are no distribution")
        return found

    async def completed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int, by: Steered | None = None
    ) -> tuple[Written, Literal["stop", "length"]]:
        """What the model goes on with, and why it ends.

        Raises:
            DefenseError: vLLM gave no whole answer.
        """
        answer = await self._whole(ids, asked(self.model, generation, room, self._top), by)
        finish = self._finish(answer)
        found = written(answer)
        if finish == "length" and not found.ids:
            raise wrong("it is empty, and has not ended")
        return found, finish

    async def streamed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int, by: Steered | None = None
    ) -> AsyncGenerator[Written, None]:
        """The same in pieces, as they come.

        Raises:
            DefenseError: vLLM ended before the answer did.
        """
        answers = self._answers(ids, asked(self.model, generation, room, self._top, streamed=True), by)
        finish = None
        async with aclosing(answers):
            async for answer in answers:
                finish = answer.finish_reason and self._finish(answer)
                if (found := written(answer)).ids or found.ended:
                    yield found
        if finish is None:
            raise wrong("it was cut off")
        yield Written([], [], ended=False, full=finish == "length")

    def steered(self, steering: Steering | None, prompt_length: int) -> Far:
        """See `Far`.

        Raises:
            UserError: The model's activations are not to be had, or no constant vectors are to be added.
        """
        if steering is not None:
            self._check_read()
        return _View(self, Steered.of(steering, prompt_length))

    async def activations(
        self, ids: Sequence[int], positions: Sequence[int], mean_from: int | None, by: Steered | None = None
    ) -> Tensor:
        """See `TokenSequence`. Without a mean each position is read by a request that ends there.

        What vLLM has kept of the tokens before is then not read again. A mean needs all of them, but only once.

        Raises:
            UserError: The model's activations are not to be had.
            DefenseError: vLLM gave none.
        """
        self._check_read()
        places = [place if place >= 0 else len(ids) + place for place in positions]
        if not places or not all(0 <= (mean_from or 0) <= place < len(ids) for place in places):
            raise IndexError(f"Positions {list(positions)} from {mean_from} on do not lie in {len(ids)} tokens.")
        wanted = sorted(set(places))
        most = 1 if mean_from is None else PLACES // 2 - 1
        groups = [tuple(wanted[first : first + most]) for first in range(0, len(wanted), most)]
        reads = [Wishes(capture=uuid4().hex, places=group, mean_from=mean_from) for group in groups]
        parts = await asyncio.gather(*(self._kept(ids[: one.places[-1] + 1], one, by) for one in reads))
        found = dict(zip(wanted, torch.cat(parts, dim=1).unbind(1), strict=True))
        return torch.stack([found[place] for place in places], dim=1)

    async def _kept(self, ids: Sequence[int], wishes: Wishes, by: Steered | None) -> Tensor:
        """What the worker keeps of a request, which has one deadline for all that it waits for."""
        params = one_step(None, whole=wishes.mean_from is not None)
        try:
            async with asyncio.timeout(self._timeout), self._inside.read(wishes) as fetch:
                await self._whole(ids, params, by, wishes)
                return await fetch()
        except TimeoutError:
            raise slow(self._timeout) from None

    def _check_read(self) -> None:
        if self.unread:
            raise UserError(f"The activations of {self.model.name} are inside vLLM: {self.unread}, or load it here.")

    async def _whole(
        self, ids: Sequence[int], params: Any, by: Steered | None = None, read: Wishes | None = None
    ) -> Any:
        """The one answer to a prompt, when it has ended."""
        answers = self._answers(ids, params, by, read)
        async with aclosing(answers):
            async for answer in answers:
                if answer.finish_reason is not None:
                    return answer
        raise wrong("it was cut off")

    async def _answers(
        self, ids: Sequence[int], params: Any, by: Steered | None = None, read: Wishes | None = None
    ) -> AsyncGenerator[Any, None]:
        """What vLLM says to a prompt. Who leaves early ends the request in vLLM, too.

        Args:
            ids: The prompt.
            params: How to go on with it.
            by: By which it is steered.
            read: What is read of it.
        """
        from vllm.inputs import tokens_input

        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            raise elsewhere()
        until = monotonic() + self._timeout
        async with self._inside.steered(by, read) as (wishes, salt):
            params.extra_args = None if wishes is None else wishes.extra
            prompt = tokens_input(list(ids), cache_salt=salt)
            outputs = self._server.generate(prompt, params, f"anchorlm-{uuid4().hex}")
            try:
                while True:
                    # No deadline is open while the answer is with the caller: it would cancel other work.
                    async with asyncio.timeout(max(until - monotonic(), 0.0)):
                        output: Any = await anext(outputs, _END)
                    if output is _END:
                        return
                    yield output.outputs[0]
            except TimeoutError:
                raise slow(self._timeout) from None
            except (DefenseError, UserError):
                raise
            except Exception as error:  # of vLLM, in many classes
                raise failed(error, params) from None
            finally:
                await outputs.aclose()

    def _finish(self, answer: Any) -> Literal["stop", "length"]:
        if answer.finish_reason in ("stop", "length"):
            return cast("Literal['stop', 'length']", answer.finish_reason)
        raise wrong(f"it ended because of {answer.finish_reason!r:.40}")


@dataclass(frozen=True, slots=True)
class _View:
    """The engine for a sequence that is steered."""

    engine: VLLMEngine
    by: Steered | None

    @property
    def model(self) -> CausalModel:
        return self.engine.model

    async def distribution(self, ids: Sequence[int], prompt_length: int) -> tuple[Tensor, float]:
        return await self.engine.distribution(ids, prompt_length, self.by)

    async def completed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int
    ) -> tuple[Written, Literal["stop", "length"]]:
        return await self.engine.completed(ids, generation, room, self.by)

    def streamed(self, ids: Sequence[int], generation: GenerationSettings, room: int) -> AsyncGenerator[Written, None]:
        return self.engine.streamed(ids, generation, room, self.by)

    def steered(self, steering: Steering | None, prompt_length: int) -> Far:
        return self.engine.steered(steering, prompt_length)

    async def activations(self, ids: Sequence[int], positions: Sequence[int], mean_from: int | None) -> Tensor:
        return await self.engine.activations(ids, positions, mean_from, self.by)
