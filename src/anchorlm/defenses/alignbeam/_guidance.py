from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from anchorlm.defenses._thinking import Thinking
from anchorlm.defenses.alignbeam._evidence import EVIDENCE, Evidence, Seen, beside, readers_of
from anchorlm.defenses.alignbeam._settings import MixtureSettings
from anchorlm.records import Access, Artifact, Decision, GenerationSettings, Request, ThoughtDelta, UserError
from anchorlm.steering import Readers
from anchorlm.tokens import Kind

if TYPE_CHECKING:
    from anchorlm.defenses.alignbeam._guide import Translator
    from anchorlm.defenses.alignbeam._mixture import MixedSequence
    from anchorlm.engine import Engine, TokenSequence
    from anchorlm.search import Diversity
    from anchorlm.steering import GateReader, Reading

GUIDED_BY = {"artifact": "inferaligner", "evidence": EVIDENCE}
"""What says when an anchor guides, by its setting; each may lie in the target's own folder, under the kind's name."""

CERTAIN = "the evidence of harm is certain"
"""Why a refusal is given at once."""

_ANCHOR_TOKENS_PER_TARGET_TOKEN = 16
"""Room that is kept for the response in the anchor's vocabulary: a rare word may be spelled there byte by byte."""


class Pair(Protocol):
    """A target and its anchor: a defense has both."""

    target: Engine

    @property
    def anchor(self) -> Engine:
        """Who guides."""
        ...


class Guidance:
    """The anchor of a defense, ready to guide its target.

    Args:
        defense: Whose target and anchor.
        settings: The defense's own: two tokenizers that share nothing, and an artifact of another target, are refused
            at once.

    Attributes:
        aligner: Reads the gate, if there is one.
        evidence: By which alpha goes, if there is any.
        settings: The defense's, with the folders of both.
        told: What says when the anchor guides, and where it lies, in one sentence.
    """

    def __init__(self, defense: Pair, settings: MixtureSettings) -> None:
        self._defense = defense
        self.aligner: GateReader | None = None
        self.evidence: Evidence | None = None
        self._readers: Readers = "target"
        self.settings = settings
        self.told = self._choose(settings)
        self._check_access()
        self._translator = lru_cache(maxsize=8)(self._build_translator)
        self.translator(settings)

    def _check_access(self) -> None:
        for role, engine in (("target", self._defense.target), ("anchor", self._defense.anchor)):
            if Access.LOGPROBS not in engine.access:
                remedy = getattr(engine, "lacks", "") or f"load the {role} with transformers"
                raise UserError(f"The anchor guides by log-probabilities, which the {role} does not give: {remedy}.")

    def _choose(self, settings: MixtureSettings) -> str:
        """Takes evidence and gate, as they are given or lie in the target's own folder.

        What is given must fit. What lies there may have been fitted with other models; it is left alone then.
        """
        left = []
        if (gate := self._place(settings, "inferaligner")) is not None:
            try:
                self._take_gate(gate, settings.gate_reader)
                self._note(artifact=gate)
            except UserError as error:
                if settings.artifact is not None:
                    raise
                left.append(str(error))
        if self.aligner is None and settings.gate_reader is not None:
            raise UserError(
                "gate_reader says who reads the gate, and there is none: give the artifact of InferAligner that was "
                "fitted to this target, or leave it out."
            )
        if (place := self._place(settings, EVIDENCE)) is not None:
            target, anchor = self._defense.target, self._defense.anchor
            try:
                self.evidence = Evidence.load(place, target, anchor, self.aligner)
                self._note(evidence=place)
            except UserError as error:
                if settings.evidence is not None:
                    raise
                left.append(str(error))
        if self.evidence is not None and settings.gate == "auto":
            return f"alpha follows the evidence of {place}"
        if self.aligner is not None and settings.gate != "always":
            return f"the anchor guides where the gate of {gate} opens, read by {self._readers}"
        return " ".join(["the anchor guides every response", *(f"({why})" for why in left)])

    def _note(self, **folders: str) -> None:
        """What is used is as if it had been given: a report looks there for what it was fitted on, say."""
        self.settings = self.settings.model_copy(update=folders)

    def _place(self, settings: MixtureSettings, name: str) -> str | None:
        given = settings.evidence if name == EVIDENCE else settings.artifact
        if given is not None or settings.gate != "auto":
            return given
        found = beside(self._defense.target.model, name)
        return None if found is None else str(found)

    def _take_gate(self, folder: str, wanted: Readers | None) -> None:
        from anchorlm.steering import GateReader, with_activations

        target, anchor = self._defense.target, self._defense.anchor
        artifact = Artifact.load(folder, "inferaligner")
        usual = readers_of(artifact, anchor)
        self._readers = wanted or usual
        for reader, engine in (("target", target), ("anchor", anchor)):
            if self._readers in (reader, "both"):
                with_activations(engine, reader, "The gate")
        # Evidence that was fitted on both readers wants both, whoever reads where there is none.
        self.aligner = GateReader.load(artifact, target, None if usual == self._readers == "target" else anchor)

    async def start(self) -> None:
        """See `Defense.start`: whether who reads the gate can be read."""
        from anchorlm.steering import check_activations

        aligner = self.aligner if self.evidence is None else self.evidence.aligner
        if aligner is None:
            return
        readers = self._readers if self.evidence is None else self.evidence.readers
        for reader, engine in (("target", self._defense.target), ("anchor", self._defense.anchor)):
            if readers in (reader, "both"):
                await check_activations(engine)

    async def read(
        self, row: TokenSequence, anchor: Engine, request: Request, settings: MixtureSettings
    ) -> Reading | Seen | None:
        """What evidence or gate say of a prompt; None where there is neither, and every response is guided.

        Args:
            row: The target's sequence, nothing but the prompt read.
            anchor: The defense's anchor, with the time limit of the request.
            request: What is answered.
            settings: Who reads.
        """
        if settings.gate == "always":
            return None
        seen = await self._read(row, anchor, request, settings)
        if seen is None or seen.open or not (turn := request.schema_turn):
            return seen
        target = self._defense.target
        async with target.open(target.model.encode(turn)) as other:
            found = await self._read(other, anchor, replace(request, messages=turn), settings)
        return found if found is not None and found.open else seen

    async def _read(
        self, row: TokenSequence, anchor: Engine, request: Request, settings: MixtureSettings
    ) -> Reading | Seen | None:
        target = self._defense.target
        if self.evidence is not None and settings.gate == "auto":
            return await self.evidence.read(row, target, anchor, request, settings.evidence_bias)
        if self.aligner is None:
            return None
        return await self.aligner.read(request.plain, self._readers, target, anchor, row=row, bias=settings.gate_bias)

    @staticmethod
    def refuses(seen: Reading | Seen | None, settings: MixtureSettings) -> bool:
        """Whether the evidence is certain of harm, and the settings give the refusal then. With alpha = 0 they do not.

        Args:
            seen: What was read of the prompt.
            settings: The request's.
        """
        return settings.certain == "refuse" and settings.alpha > 0 and isinstance(seen, Seen) and seen.sure

    async def open(
        self,
        stack: AsyncExitStack,
        row: TokenSequence,
        anchor: Engine,
        request: Request,
        settings: MixtureSettings,
        *,
        rows: int,
        seen: Reading | Seen | None = None,
        trace_top: int = 0,
    ) -> MixedSequence:
        """Both models before the response; with alpha = 0 the anchor is not asked at all.

        Args:
            stack: Closes the anchor's rows.
            row: The target's sequence.
            anchor: The defense's anchor, with the time limit of the request.
            request: What is answered.
            settings: How to mix.
            rows: Responses that will be guided at once.
            seen: What was read of the prompt. Where evidence is in between, so is alpha; where it said that the
                target may answer alone, somebody else has seen harm since, and alpha is whole.
            trace_top: Tokens per distribution and step in the trace.
        """
        from anchorlm.defenses.alignbeam._guide import Guide
        from anchorlm.defenses.alignbeam._mixture import MixedSequence

        alpha = settings.alpha * (seen.share if isinstance(seen, Seen) and seen.open else 1.0)
        guide = None
        if alpha > 0:
            ids = anchor.model.encode(request.prompt_text, closed=True)  # an anchor does not think
            sequence = await stack.enter_async_context(
                anchor.open(ids, rows=_rows(rows, settings), room=_room(settings, request.generation))
            )
            guide = Guide(sequence, self.translator(settings))
        return MixedSequence(
            row,
            guide,
            self._defense.target.model.vocabulary,
            alpha=alpha,
            mix_at=settings.mix_at,
            trace_top=trace_top,
            generation=request.generation,
        )

    async def think(
        self,
        thinking: Thinking,
        row: TokenSequence,
        anchor: Engine,
        settings: MixtureSettings,
        seen: Reading | Seen | None = None,
    ) -> AsyncIterator[ThoughtDelta | Decision]:
        """The thought before the answer, under the anchor's guidance where the settings say so.

        Args:
            thinking: The thought.
            row: The target's sequence, nothing but the prompt read.
            anchor: The defense's anchor, as it is at present.
            settings: How to mix.
            seen: What was read of the prompt; the thought is guided where the answer is.
        """
        guides = settings.guide_thought and thinking.room > 0 and (seen is None or seen.open)
        free = thinking.request.generation.model_copy(update={"response_format": None})
        asked = replace(thinking.request, generation=free)
        async with AsyncExitStack() as stack:
            guide = await self.open(stack, row, anchor, asked, settings, rows=1, seen=seen) if guides else None
            async for piece in thinking.write(row, guide, settings.mixed_tokens):
                yield piece

    def needs(self, request: Request, settings: MixtureSettings, rows: int) -> tuple[int, int]:
        """The rows, and tokens of each, that the anchor's engine must hold to guide so many responses at once."""
        model = self._defense.anchor.model
        length = len(model.encode(request.prompt_text, closed=True)) + _room(settings, request.generation)
        return _rows(rows, settings), min(length, model.context_length)

    def translator(self, settings: MixtureSettings) -> Translator:
        """The way from the anchor's vocabulary to the target's, built when a projection is first asked for."""
        return self._translator(settings.projection, settings.top if settings.projection.startswith("paper-") else 1)

    def _build_translator(self, kind: Kind, top: int) -> Translator:
        from anchorlm.defenses.alignbeam._guide import Translator

        return Translator.between(self._defense.anchor.model, self._defense.target.model, kind, top)


def _rows(guided: int, settings: MixtureSettings) -> int:
    from anchorlm.defenses.alignbeam._guide import LOOKAHEAD_ROWS

    return guided + (LOOKAHEAD_ROWS if settings.projection == "lookahead" else 0)


def _room(settings: MixtureSettings, generation: GenerationSettings) -> int:
    """Tokens of the anchor: for those that it guides, and for what a response format forces between them."""
    forced = 0 if generation.response_format is None else generation.max_new_tokens
    return settings.mixed_tokens * _ANCHOR_TOKENS_PER_TARGET_TOKEN + forced


class Guided:
    """A `Proposal` whose first tokens are drawn from AlignBeam's mixture; then the target goes on alone.

    Args:
        mixed: Both models.
        tokens: N: how many tokens of the response are mixed.
        stops: The tokens that end the target's turn.
    """

    def __init__(self, mixed: MixedSequence, tokens: int, stops: frozenset[int]) -> None:
        self.mixed = mixed
        self._tokens = tokens if mixed.guide is not None else 0
        self._stops = stops

    @property
    def row(self) -> TokenSequence:
        """See `Proposal`."""
        return self.mixed.target

    @property
    def response(self) -> list[int]:
        """See `Proposal`."""
        return self.mixed.response

    def fork(self) -> Guided:
        """See `Proposal`."""
        return Guided(self.mixed.fork(), self._tokens, self._stops)

    def crop(self, length: int) -> None:
        """See `Proposal`; the guide finds its way back by itself."""
        self.row.crop(self.row.prompt_length + length)

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`."""
        from anchorlm.engine import Sampler, stepwise
        from anchorlm.search import take

        if self.mixed.guided >= self._tokens:
            self.mixed.release_guide()  # nothing crops a response behind the start of its last block
        sampler = Sampler(generation)
        for step in range(generation.max_new_tokens):
            mixing = self.mixed.guided < self._tokens
            if not mixing and (diversity is None or not stepwise(self.row)):
                rest = {"max_new_tokens": generation.max_new_tokens - step, "seed": generation.seed + step}
                return (await self.row.generate(generation.model_copy(update=rest))).finish_reason == "stop"
            if mixing:
                mixture = await self.mixed.mixture()
                mixture.top(1)  # raises where it is no distribution
                logits = mixture.f.log()
            else:
                logits = await self.row.logits()
            if diversity is not None:
                logits = logits - diversity.penalty(step, logits)
            if take(self.row, logits, sampler, self._stops, generation):
                return True
        return False

    def close(self) -> None:
        """See `Proposal`."""
        self.mixed.release_guide()
        self.row.close()
