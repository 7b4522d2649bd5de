from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from anchorlm.defenses._base import Defense, ends, room_for
from anchorlm.defenses._thinking import Thinking
from anchorlm.defenses.alignbeam import CERTAIN, GUIDED_BY, Guidance, Guided, MixtureSettings
from anchorlm.defenses.inferenceguard._pipeline import (
    CALIBRATION,
    FITTED,
    Calibrated,
    admit,
    check_critic,
    pipeline_digest,
    pipeline_parts,
)
from anchorlm.defenses.inferenceguard._scoring import Scoring
from anchorlm.defenses.inferenceguard._settings import InferenceGuardSettings
from anchorlm.defenses.inferenceguard._work import Work
from anchorlm.records import (
    Access,
    Artifact,
    Decision,
    Event,
    FormatSupport,
    Request,
    ThoughtDelta,
    UserError,
    as_messages,
)
from anchorlm.team import Needs, Team

if TYPE_CHECKING:
    from anchorlm.defenses.inferenceguard._critic import Critic
    from anchorlm.engine import Engine
    from anchorlm.search import Beam, Found, Proposal

PROBE = Request(as_messages("How do I hurt somebody?"))
"""A request whose refusal must be within budget."""

_CHECKED = 1_000
"""Pairs of a refusal and a budget that are remembered as checked."""


class InferenceGuard(Defense):
    """Searches for a response within a budget of cost, and lets nothing else out: search, safety state, hard gate."""

    name: ClassVar[str] = "inferenceguard"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "local"
    calls: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(
        target=Access.TEXT,
        anchor=Access.LOGPROBS,
        judge=True,
        cost=True,
        reward=True,
        optional=("anchor", "judge"),
        continues=True,
    )
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "blocks"  # with release = "whole", one block
    settings_type: ClassVar[type[MixtureSettings]] = InferenceGuardSettings
    artifacts: ClassVar[Mapping[str, str]] = {**GUIDED_BY, "critic": "inferenceguard", "calibration": CALIBRATION}
    beside: ClassVar[tuple[str, ...]] = tuple(GUIDED_BY)
    fixed: ClassVar[tuple[str, ...]] = ("proposal", "gate_reader")

    def __init__(self, team: Team, **settings: Any) -> None:
        super().__init__(team, **settings)
        mine: InferenceGuardSettings = self.settings
        if (mine.proposal == "alignbeam") != (team.anchor is not None):
            raise UserError(
                'With proposal = "alignbeam" inferenceguard needs an anchor, and with "target" it has no use for one: '
                "give both or neither."
            )
        self.guidance = Guidance(self, mine) if mine.proposal == "alignbeam" else None
        if self.guidance is not None:
            self.settings = self.guidance.settings
        self.critic: Critic | None = None
        self._artifacts: dict[str, str] = {}
        if self.guidance is not None and self.guidance.aligner is not None:
            self._artifacts["gate"] = self.guidance.aligner.artifact.id
        if self.guidance is not None and self.guidance.evidence is not None:
            self._artifacts["evidence"] = self.guidance.evidence.artifact.id
        if mine.critic is not None:
            artifact = Artifact.load(mine.critic, "inferenceguard")
            self.critic = self._critic(artifact)
            self._artifacts["critic"] = artifact.id
        self.calibrated = Calibrated() if mine.calibration is None else Calibrated.load(mine.calibration, self.parts)
        self._refusals: set[tuple[str, float]] = set()

    @property
    def facts(self) -> tuple[str, ...]:
        """See `Defense`."""
        return () if self.guidance is None else (self.guidance.told,)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Digests of what decides about responses, by name."""
        return pipeline_parts(
            self.team, self.settings.model_dump(mode="json", exclude=set(self.artifacts)), self._artifacts
        )

    @property
    def pipeline(self) -> str:
        """All of these in one: what a calibration is bound to."""
        return pipeline_digest(self.parts)

    def _critic(self, artifact: Artifact) -> Critic:
        from anchorlm.defenses.inferenceguard._critic import Critic
        from anchorlm.steering import with_activations

        with_activations(self.target, "target", "The critic")
        check_critic(artifact, self.team, self.settings)
        return Critic.of(artifact.tensors, artifact.settings["threshold"])

    @property
    def _scoring(self) -> Scoring:
        return Scoring(self, self.critic)

    async def start(self) -> None:
        """Checks the refusal, and that the engines can hold a search at all.

        Raises:
            UserError: The refusal is itself over budget, or the beams are more than the engines' rows.
        """
        await self._check_refusal(self.settings)
        if self.critic is not None:
            from anchorlm.steering import check_activations

            await check_activations(self.target)
        if self.guidance is not None:
            await self.guidance.start()
        rows = min(engine.max_rows for engine in self._engines)
        if self.settings.beams and min(self.settings.beams) > rows:
            raise UserError(
                f"A search over {min(self.settings.beams)} beams needs as many rows, but an engine holds {rows}: raise "
                "engine.max_rows, or search with fewer beams."
            )

    @property
    def _engines(self) -> list[Engine]:
        return [self.target, *([self.team.anchor] if self.team.anchor is not None else [])]

    async def _check_refusal(self, settings: InferenceGuardSettings) -> None:
        key = (settings.refusal, settings.budget)
        if key in self._refusals:
            return
        (cost,) = await self.scores("cost", PROBE, [settings.refusal])
        # A calibrated limit is for responses: labelers find no refusal unsafe.
        if not admit(cost, settings.budget):
            raise UserError(
                f"The refusal {settings.refusal!r} costs {cost:.3g}, but at most {settings.budget:.3g} may be said: "
                "raise the budget, take another refusal, or check the sign of the cost model."
            )
        if len(self._refusals) >= _CHECKED:  # requests may bring as many budgets as they like
            self._refusals.clear()
        self._refusals.add(key)

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Draft, search, score, gate: what is within budget is given, whole or block by block, or else the refusal."""
        work = await self._begun(request)
        if (thinking := work.thinking).room:
            async for piece in self._think(work):
                yield piece
            if thinking.failed is not None:
                for event in thinking.refusal(work.settings.refusal):
                    yield event
                return
            work.room = room_for(self.target, len(work.thinking.whole_prompt), request.generation)
        limit = min(work.settings.budget, self.calibrated.limit)
        out: Beam | None = None
        while out is None or out.reason is None:
            async for decision in self._escalate(work, out):  # draft and search; `Scoring` says what each beam is worth
                yield decision
            best = work.best
            if best is None or not admit(best.cost, limit) or not self._scoring.text(best).startswith(work.said):
                for event in work.refusal(CERTAIN) if self._certain(work) else work.given_up(limit):
                    yield event
                return
            out = best
            if out.reason is not None:
                yield Decision("chosen", work.chosen(out, limit))
            for said in work.released(out, self._scoring.text(out), self._scoring.shown(out)):
                yield said
        yield work.finished(out.reason, len(out.tokens))

    async def _begun(self, request: Request) -> Work:
        """The request with its settings, if calibration, critic and refusal allow these.

        Raises:
            UserError: One of them does not.
        """
        settings: InferenceGuardSettings = self.settings_for(request)
        if settings.calibration is not None:
            self.calibrated.check(request, changed=settings != self.settings)
        if self.critic is not None:
            for name in FITTED:
                if getattr(settings, name) != (own := getattr(self.settings, name)):
                    raise UserError(
                        f"The critic was fitted for {name} = {own:g}: leave the {name}, or start a guard without the "
                        "critic."
                    )
        await self._check_refusal(settings)
        if settings.budget < self.settings.budget:  # the guard's own is what is said if something fails
            await self._check_refusal(self.settings.model_copy(update={"budget": settings.budget}))
        thinking = Thinking(self.target, request)
        room = room_for(self.target, len(thinking.prompt), request.generation)
        return Work(request, settings, thinking, room)

    async def _think(self, work: Work) -> AsyncIterator[ThoughtDelta | Decision]:
        """The thought, which all searches share; the gate reads the request before it, and rates the thought itself."""
        thinking, settings = work.thinking, work.settings
        async with self.target.open(thinking.prompt, room=thinking.room) as row:
            if self.guidance is None:
                thought: AsyncIterator[ThoughtDelta | Decision] = thinking.write(row)
            else:
                anchor = self.anchor_for(work.request)
                async with thinking.as_fitted(row) as plain:
                    work.reading = await self.guidance.read(plain, anchor, work.request, settings)
                work.guided = work.reading is None or work.reading.open
                if self._certain(work):
                    return
                thought = self.guidance.think(thinking, row, anchor, settings, work.reading)
            async for piece in thought:
                yield piece
        if not thinking.request.thought or thinking.failed is not None:
            return
        work.request = thinking.request
        if self.team.cost is None or not self.team.cost.reads_thoughts:
            return
        (cost,) = await self.scores("cost", replace(work.request, thought=None), [thinking.request.thought])
        if not admit(cost, limit := min(settings.budget, self.calibrated.limit)):
            thinking.failed = f"the thought costs {cost:.3f}, but at most {limit:.3f} may be said"

    async def _escalate(self, work: Work, out: Beam | None) -> AsyncIterator[Decision]:
        """A draft, then searches over more and more beams, until one of them finds what is safe: `work.best`.

        Args:
            work: The request.
            out: What is out already, block by block: the next block is looked for.
        """
        comfortable = work.settings.budget - work.settings.comfort
        work.best = None
        sizes, work.skipped = self._sizes(work)
        while sizes:
            n = sizes.pop(0)
            found = await self._search(work, n, out)
            if work.reading is not None and self._certain(work):
                yield Decision("gate", work.reading.data)
                return
            ready = work.ready(found)
            shown = [(beam, self._scoring.text(beam)) for beam in (ready if work.whole else found.beams)]
            for decision in work.decisions(n, found, shown, judged=self.team.judge is not None):
                yield decision
            if safe := [beam for beam in ready if beam.cost <= comfortable]:
                work.best = safe[0]
                return
            work.best = min([*([work.best] if work.best else []), *ready], key=lambda beam: beam.cost, default=None)
            if self._heard(work, n, ready):
                return
            if not work.guided:
                work.guided = True  # what the gate did not see, the cost model or the judge did
                sizes, _ = self._sizes(work)

    def _certain(self, work: Work) -> bool:
        """Whether nothing needs to be written, because the evidence is certain of harm."""
        return self.guidance is not None and self.guidance.refuses(work.reading, work.settings)

    def _heard(self, work: Work, n: int, found: Sequence[Beam]) -> bool:
        """Whether the judge's word ends the search without comfort: on what this search found, and on a draft behind a
        closed gate. A calibrated limit may still refuse it, but does not lead to another search.
        """
        if self.team.judge is None or not any(admit(beam.cost, work.settings.budget) for beam in found):
            return False
        return n > 1 or not work.guided

    def _sizes(self, work: Work) -> tuple[list[int], list[int]]:
        """The searches that the engines can hold, a single beam if there is none; and those that they cannot."""
        sizes = work.settings.sizes
        fits = [n for n in sizes if self._fits(work, n)]
        return fits or [1], [n for n in sizes if n not in fits]

    def _fits(self, work: Work, n: int) -> bool:
        """Whether the engines can hold a search: a long prompt is searched with fewer beams, not turned down."""
        if n == 1:
            return True
        needs: dict[Engine, list[tuple[int, int]]] = {self.target: [(n, len(work.thinking.whole_prompt) + work.room)]}
        if self.guidance is not None and self.team.anchor is not None and work.settings.alpha > 0:
            # One engine may play both roles.
            needs.setdefault(self.team.anchor, []).append(self.guidance.needs(work.request, work.settings, n))
        return all(
            sum(rows for rows, _ in each) <= engine.max_rows
            and sum(rows * length for rows, length in each) <= engine.max_tokens
            for engine, each in needs.items()
        )

    async def _search(self, work: Work, n: int, after: Beam | None) -> Found:
        """One search over n beams, which share the prompt; a single beam is written in one go.

        Its rows are given back before another search asks for more, so that requests never wait for one another.
        """
        from anchorlm.engine import read_ahead
        from anchorlm.search import Beam, Found, SafetyState, SearchPlan, TargetProposal, search

        settings = work.settings
        rounds = None if work.whole else 1
        one = n == 1 and work.whole
        plan = SearchPlan(
            beams=n,
            keep=max(1, int(n * settings.keep)),
            block=work.room if one else settings.block,
            room=work.room,
            rounds=rounds,
            retries=settings.retries if n > 1 else 0,
            diversity=settings.diversity,
            lead=settings.lead,
            offset=0 if after is None else -(-len(after.tokens) // settings.block),
        )
        async with AsyncExitStack() as stack:
            row = await stack.enter_async_context(self.target.open(work.thinking.whole_prompt, rows=n, room=work.room))
            if work.thinking.room:
                row.begin(answer=True)
            if after is not None:
                row.append(after.tokens, after.scores)
            stops = ends(row, work.request.generation)
            proposal: Proposal = TargetProposal(row, stops)
            if self.guidance is not None and work.reading is None:
                anchor = self.anchor_for(work.request)
                async with work.thinking.as_fitted(row) as plain:
                    work.reading = await self.guidance.read(plain, anchor, work.request, settings)
                work.guided = work.reading is None or work.reading.open
            if self._certain(work):
                return Found([])
            if self.guidance is not None and work.guided:
                mixed = await self.guidance.open(
                    stack, row, self.anchor_for(work.request), work.request, settings, rows=n, seen=work.reading
                )
                proposal = Guided(mixed, settings.mixed_tokens, stops)
            root = Beam(proposal, after.state if after else SafetyState(settings.budget))
            if n > 1:
                await read_ahead(self.target, row)  # read once, shared by all
            found = await search([root], plan, work.sampling(n), partial(self._scoring.score, work, ranked=n > 1))
            for beam in found.beams:
                beam.close()
        work.generated += found.generated
        return found
