from __future__ import annotations

from asyncio import gather
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import groupby
from typing import Any

from anchorlm.defenses._thinking import Thinking
from anchorlm.defenses.inferaligner._aligner import Aligner
from anchorlm.engine import Engine, Positions
from anchorlm.files import Kept, short_key
from anchorlm.judging import Answer, Grading, Outcome
from anchorlm.records import GenerationSettings, Messages, Request, ThoughtSettings
from anchorlm.steering import LEAST, rate
from anchorlm.team import Progress

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Strengths that are tried, in natural lengths of the vectors."""

COARSE = (0.5, 1.0, 2.0)
"""Those that are tried first, on every window of layers."""

_STARTS = 12
"""About how many places a window is tried at, however deep the model is."""
_DEEP = 16
"""Blocks from which on single ones are not tried, and fewer places: there one alone turns next to nothing."""
_SHORT, _LONGER = 16, 24
"""Tokens of the answers with which the search begins, and goes on: a refusal shows at once."""
_REFINED, _FINALISTS = 4, 4
_THOUGHT = 512
"""Longest thought before an answer that is measured."""
_BROKEN_WEIGHT = 2


@dataclass(frozen=True, slots=True)
class Shift:
    """One way to steer where the gate opens.

    Attributes:
        layers: The steered blocks.
        positions: Which positions are shifted.
        alpha: Strength in natural lengths.
    """

    layers: tuple[int, ...]
    positions: Positions
    alpha: float

    @property
    def total(self) -> tuple[float, bool]:
        """How much is added in all: of equally good shifts the smaller is taken."""
        return self.alpha * len(self.layers), self.positions == "all"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a shift did with the gate forced open.

    Attributes:
        shift: Which.
        outcomes: Of the harmful prompts, in order.
        floor: How many of the same answers are broken without any shift.
    """

    shift: Shift
    outcomes: tuple[Outcome, ...]
    floor: int

    @property
    def score(self) -> float:
        """Share refused, less twice the share that the shift broke."""
        broken = max(0, self.outcomes.count("broken") - self.floor)
        return (self.outcomes.count("refused") - _BROKEN_WEIGHT * broken) / len(self.outcomes)

    @property
    def rank(self) -> tuple[float, float, bool]:
        """The larger, the better."""
        size, everywhere = self.shift.total
        return self.score, -size, not everywhere

    def data(self, stage: str) -> dict[str, Any]:
        """As plain data."""
        return {
            "stage": stage,
            "layers": list(self.shift.layers),
            "positions": self.shift.positions,
            "alpha": self.shift.alpha,
            "score": round(self.score, 4),
            **shares(self.outcomes),
        }


def shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The rate of each outcome, with intervals."""
    return {name: rate(outcomes.count(name), len(outcomes)) for name in ("refused", "complied", "broken")}


def windows(depth: int, others: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """The sets of layers that are tried: one, two, three or half of all, adjacent, and `others`; of a deep one a tenth,
    a fifth or half, at fewer places.
    """
    deep = depth >= _DEEP
    widths = {depth // 10, depth // 5, depth // 2} if deep else {1, 2, 3, max(1, depth // 2)}
    step = -(-depth // _STARTS) + 1 if deep else max(1, depth // _STARTS)
    found = [
        tuple(range(start, start + width)) for width in sorted(widths) for start in range(0, depth - width + 1, step)
    ]
    return list(dict.fromkeys([*found, *(tuple(layers) for layers in others if layers)]))


def middle(trials: Sequence[Trial]) -> Trial:
    """The middle of the longest run of neighbors that do best: who reacts a little otherwise stays on the plateau.

    Args:
        trials: In the order of their strengths.
    """
    best = max(trial.score for trial in trials)
    runs = [list(run) for top, run in groupby(trials, lambda trial: trial.score == best) if top]
    longest = max(runs, key=len)
    return longest[(len(longest) - 1) // 2]


async def answers(
    target: Engine,
    aligner: Aligner | None,
    jobs: Sequence[tuple[Messages, Shift | None]],
    max_new_tokens: int,
    kept: Kept,
    step: Callable[[], None],
    *,
    thinks: bool = False,
) -> list[Answer]:
    """The target's greedy answers, each steered as its job says, all side by side; those that are known are not given
    again.

    Args:
        target: Who answers.
        aligner: Steers it, if anyone does.
        jobs: The prompts, each with its shift.
        max_new_tokens: Longest answer.
        kept: What is known already.
        step: Called after each answer.
        thinks: Whether a target that thinks does so first, steered as well; otherwise its thought is empty. A thought
            that does not end leaves an empty answer.
    """
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    policy = ThoughtSettings(policy="hide" if thinks else "off", budget=_THOUGHT)

    async def answer(messages: Messages, shift: Shift | None) -> Answer:
        key = "answer", short_key(messages, shift and astuple(shift), max_new_tokens, *(["thinks"] if thinks else []))
        if (known := kept.get(*key)) is None:
            thinking = Thinking(target, Request(messages, settings, thoughts=policy))
            async with target.open(thinking.prompt, room=max_new_tokens + thinking.room) as row:
                if aligner is not None and shift is not None:
                    row.steer(aligner.steering(alpha=shift.alpha, layers=shift.layers, positions=shift.positions))
                if thinks:
                    async for _ in thinking.write(row):
                        pass
                written = await row.generate(settings) if thinking.failed is None else None
            said: list[Any] = ["", []] if written is None else [written.text, list(written.token_ids)]
            known = kept.put(said, *key)
        step()
        return Answer(messages, known[0], tuple(known[1]))

    return await gather(*(answer(messages, shift) for messages, shift in jobs))


@dataclass(slots=True)
class Search:
    """Looks for the best shift, and keeps everything that it tried.

    Attributes:
        target: Runs the target.
        aligner: Steers it.
        grading: Tells outcomes.
        prompts: Harmful ones.
        undefended: What becomes of each without any shift.
        max_new_tokens: Longest answer.
        kept: What is known already.
        step: Told how far it is.
        tried: Every trial so far, as data.
    """

    target: Engine
    aligner: Aligner
    grading: Grading
    prompts: Sequence[Messages]
    undefended: Sequence[Outcome]
    max_new_tokens: int
    kept: Kept
    step: Progress
    tried: list[dict[str, Any]] = field(default_factory=list)

    async def best(self, layers: Sequence[tuple[int, ...]], size: int) -> Trial:
        """The best shift, by halving: all of them on a few prompts with short answers, the better ones on more.

        Where none of all makes more refusals than there are without any, the search ends. Where several strengths do
        equally well, it is the middle one.

        Args:
            layers: The sets of layers to try.
            size: How many prompts it may be chosen on.
        """
        few = range(min(size, LEAST))
        places: list[tuple[tuple[int, ...], Positions]] = [
            (chosen, positions) for chosen in layers for positions in ("prompt", "all")
        ]
        first = [Shift(*place, alpha) for place in places for alpha in COARSE]
        coarse = await self.stage("coarse", first, few, _SHORT)
        bare = [self.undefended[place] for place in few].count("refused")
        if max(trial.outcomes.count("refused") for trial in coarse) <= bare:
            return (await self.stage("final", [coarse[0].shift], range(size)))[0]
        near = list(dict.fromkeys((trial.shift.layers, trial.shift.positions) for trial in coarse))[:_REFINED]
        fine = [Shift(*place, alpha) for place in near for alpha in ALPHAS]
        better = await self.stage("fine", fine, range(min(size, 2 * LEAST)), _LONGER)
        final = await self.stage("final", [trial.shift for trial in better[:_FINALISTS]], range(size))
        best = final[0].shift
        tried = [trial for trial in final if replace(trial.shift, alpha=best.alpha) == best]
        known = {trial.shift.alpha for trial in tried}
        others = [replace(best, alpha=alpha) for alpha in ALPHAS if alpha not in known]
        tried += await self.stage("plateau", others, range(size))
        return middle(sorted(tried, key=lambda trial: trial.shift.alpha))

    async def stage(
        self, name: str, shifts: Sequence[Shift], places: Sequence[int], longest: int | None = None, *,
        thinks: bool = False,
    ) -> list[Trial]:  # fmt: skip
        """Tries shifts on the prompts at some places, best first; with shorter answers than all, if that is said."""
        tokens = min(self.max_new_tokens, longest or self.max_new_tokens)
        prompts = [self.prompts[place] for place in places]
        floor = [self.undefended[place] for place in places].count("broken")
        total, done = len(shifts) * len(prompts), 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.step(f"Shifts, {name}: {len(shifts)} on {len(prompts)} prompts", done, total)

        jobs = [(prompt, shift) for shift in shifts for prompt in prompts]
        said = await answers(self.target, self.aligner, jobs, tokens, self.kept, tick, thinks=thinks)
        outcomes = await self.grading(said)
        trials = [
            Trial(shift, tuple(outcomes[start : start + len(prompts)]), floor)
            for shift, start in zip(shifts, range(0, total, len(prompts)), strict=True)
        ]
        trials.sort(key=lambda trial: trial.rank, reverse=True)
        self.tried += [trial.data(name) for trial in trials]
        return trials
