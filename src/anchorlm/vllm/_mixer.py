from __future__ import annotations

import logging
from asyncio import gather
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor

from anchorlm.defenses.alignbeam import LOOKAHEAD_ROWS, Guidance, MixedSequence
from anchorlm.engine import Engine, LocalEngine, runtime
from anchorlm.models import CausalModel, ModelSettings, prepack
from anchorlm.records import DefenseError, Request, UserError
from anchorlm.vllm._answer_start import AnswerStart
from anchorlm.vllm._conversation import ConversationReader
from anchorlm.vllm._server_row import ServedTarget, ServerRow
from anchorlm.vllm._settings import Asked, PluginSettings

if TYPE_CHECKING:
    from anchorlm.engine import TokenSequence

_log = logging.getLogger("anchorlm")


class Guided:
    """What is known of one request that the anchor guides. It belongs to the request, not to a slot or a row.

    Attributes:
        alpha: Weight of the anchor.
        tokens: How many tokens are mixed, at the beginning and behind each thought.
        start: Where they begin.
        prompt: The prompt's token ids, once they are known.
        written: Those of its response, as far as a server had to be asked for them.
        refused_at: The length of the response at which the guard failed; None: it has not.
        known: Whether it was looked at. A server may take a request out of its batch, and bring it back as a new one.
    """

    def __init__(self, alpha: float, tokens: int, start: AnswerStart) -> None:
        self.alpha = alpha
        self.tokens = tokens
        self.start = start
        self.prompt: list[int] = []
        self.written: list[int] = []
        self.refused_at: int | None = None
        self.known = False
        self.row: ServerRow | None = None
        self.mixed: MixedSequence | None = None
        self.stack = AsyncExitStack()

    def says(self, written: int) -> bool:
        """Whether the next token, after so many of the response, is ours to say."""
        return written < self.start.place + self.tokens or self.refused_at is not None

    def wants(self, written: int) -> bool:
        """Whether it may be, so that the response must be looked at."""
        return not self.known or self.start.watches or self.says(written)


class _Pair:
    """What `Guidance` wants of a defense."""

    def __init__(self, target: Engine, anchor: Engine) -> None:
        self.target = target
        self.anchor = anchor


class Mixer:
    """AlignBeam's mixture for the rows of a server's step. It knows nothing of the server.

    One step is one call of `mix`: whatever the anchor must read for all of its rows is read together.

    Args:
        target: The server's model, of which only tokenizer, template and configuration are used.
        anchor: The anchor's engine.
        settings: What the operator says.

    Raises:
        UserError: The two tokenizers share nothing, or a setting does not fit.
    """

    def __init__(self, target: CausalModel, anchor: Engine, settings: PluginSettings) -> None:
        self.settings = settings
        self._target = target
        self._anchor = anchor
        self._reader = ConversationReader(target)
        served = cast("Engine", ServedTarget(target))
        self._guidance = Guidance(_Pair(served, anchor), settings.mixing)
        self._refusal = [*target.vocabulary.encode(settings.mixing.refusal.encode())]
        eos = target.tokenizer.eos_token_id  # at which vLLM stops, whatever else the template ends turns with
        ends = sorted(target.stop_ids) if eos is None else [int(eos)]
        if not ends:
            raise UserError(f"No token ends an answer of {target.name}, so a refusal would go on: set its eos_token.")
        self._end = ends[0]

    @classmethod
    def load(cls, settings: PluginSettings, target: ModelSettings, *, rows: int) -> Self:
        """Loads the anchor.

        Args:
            settings: What the operator says.
            target: Where the server's model lies.
            rows: Requests that the server answers at once.

        Raises:
            UserError: A model that is not there, or two that do not fit.
        """
        if settings.anchor is None:
            raise UserError("AnchorLM has no anchor in this server: name one.")
        model = CausalModel.load(settings.anchor)
        prepack(model.model)
        if settings.engine is not None:
            limits = settings.engine.model_dump()
        else:
            # A step cannot wait for a later one, so there is room for all rows. Memory is taken when it is needed.
            rows *= 1 + (LOOKAHEAD_ROWS if settings.mixing.projection == "lookahead" else 0)
            limits = {"max_rows": rows, "max_tokens": rows * model.context_length}
        return cls(CausalModel.outline(target), LocalEngine(model, **limits), settings)

    def state(self, asked: Asked | None) -> Guided | None:
        """What a new request starts with; None where its rows stay as they are."""
        alpha, tokens = self.settings.share(asked)
        return Guided(alpha, tokens, AnswerStart(self._target)) if alpha > 0 else None

    def mix(self, logits: Tensor, rows: Sequence[tuple[int, Guided, Sequence[int]]]) -> None:
        """Puts the mixture into some rows of a step's logits.

        Args:
            logits: (n, V), changed in place.
            rows: Row, request, and the tokens of its response so far.
        """
        for _, guided, written in rows:
            before = guided.start.place
            if guided.start.read(written) > before:
                self.close(guided)  # the anchor answers from here on, and knows nothing of the thought
            if not guided.known:
                guided.refused_at, guided.known = self._refused_before(guided, written), True
        ours = [(row, guided, written) for row, guided, written in rows if guided.says(len(written))]
        if not ours:
            return
        if logits.device.type != "cpu":  # the anchor runs on another thread, which has a stream of its own
            torch.accelerator.synchronize()
        mixed = runtime().run(self._steps([(guided, written, logits[row]) for row, guided, written in ours]))
        if logits.device.type != "cpu":
            torch.accelerator.synchronize()
        for (row, _, _), found in zip(ours, mixed, strict=True):
            logits[row] = found
        for _, guided, written in ours:
            if len(written) + 1 >= guided.start.place + guided.tokens:
                self.close(guided)

    def _refused_before(self, guided: Guided, written: Sequence[int]) -> int | None:
        """Where the refusal began of which a response ends with a part; None where it does not.

        A single token says so only behind the mixed ones: before, the anchor goes on and fails again, if it did.
        """
        refusal, first = [*self._refusal, *[self._end] * len(written)], guided.start.place
        for start in range(first, min(first + guided.tokens, len(written))):
            length = len(written) - start
            if list(written[start:]) == refusal[:length] and (length > 1 or len(written) >= first + guided.tokens):
                return start
        return None

    def close(self, guided: Guided) -> None:
        """Gives the anchor's row back; what follows is the server's alone."""
        if guided.mixed is not None:
            guided.mixed = None
            runtime().run(guided.stack.aclose())

    async def _steps(self, steps: Sequence[tuple[Guided, Sequence[int], Tensor]]) -> list[Tensor]:
        return await gather(*(self._step(*step) for step in steps))

    async def _step(self, guided: Guided, written: Sequence[int], logits: Tensor) -> Tensor:
        """The logits (V,) from which the server chooses the next token of one request."""
        if guided.refused_at is None:
            try:
                return await self._mixture(guided, written, logits)
            except (DefenseError, UserError) as error:
                _log.warning("A request gets the refusal, because its anchor cannot guide it: %s", error)
            except Exception:  # an error here would end the server for everyone
                _log.exception("A request gets the refusal, because guiding it failed.")
            guided.refused_at = len(written)
        place = len(written) - guided.refused_at
        token = self._refusal[place] if place < len(self._refusal) else self._end
        return torch.full_like(logits, -torch.inf).index_fill_(0, torch.tensor(token, device=logits.device), 0.0)

    async def _mixture(self, guided: Guided, written: Sequence[int], logits: Tensor) -> Tensor:
        if min(written, default=0) < 0:
            raise DefenseError("The server has not said yet what it has written: start it with --no-async-scheduling.")
        if guided.mixed is None:
            await self._open(guided)
        if guided.row is None or guided.mixed is None:
            raise RuntimeError("A request was mixed that is not open.")
        guided.row.response, guided.row.read = list(written[guided.start.place :]), logits
        mixture = await guided.mixed.mixture()
        mixture.top(1)  # raises where it is no distribution
        found = mixture.f.log()
        # What the server forbids, by a grammar say, stays forbidden.
        kept = found.masked_fill(logits.isneginf(), -torch.inf)
        if not bool((kept > -torch.inf).any()):
            raise DefenseError("The server forbids every token of the mixture.")
        return kept

    async def _open(self, guided: Guided) -> None:
        request = Request(self._reader.read(guided.prompt))
        guided.row = ServerRow(self._target, guided.prompt)
        settings = self.settings.mixing.model_copy(
            update={"alpha": guided.alpha, "mixed_tokens": guided.tokens, "gate": "always"}
        )
        guided.mixed = await self._guidance.open(
            guided.stack, cast("TokenSequence", guided.row), self._anchor, request, settings, rows=1
        )
