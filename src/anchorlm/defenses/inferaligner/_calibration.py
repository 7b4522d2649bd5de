from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anchorlm.defenses.inferaligner._aligner import Aligner
from anchorlm.defenses.inferaligner._gates import GateChoice, choose_gate, corners, joint_gate, mean_scores
from anchorlm.defenses.inferaligner._measured import layer_notes
from anchorlm.defenses.inferaligner._requests import (
    FORMS,
    REFUSED,
    Limits,
    Means,
    Seen,
    Sets,
    Ways,
    gate_data,
    in_form,
    rate_by_prompt,
    read_ways,
    ways,
)
from anchorlm.defenses.inferaligner._shifts import Search, Trial, answers, shares, windows
from anchorlm.engine import Engine
from anchorlm.files import Kept
from anchorlm.judging import FluencyGrading, Grader, Outcome, graded_by, instrument
from anchorlm.steering import GIVEN, LEAST, rate
from anchorlm.team import Progress

_SEPARATES = 0.9
"""Balanced accuracy from which on a layer counts as one that separates the classes."""

_STEERS = 0.5
"""Share of clean refusals, the gate forced open, below which the fixed refusal is given instead of a steered answer."""

Chosen = tuple[dict[str, Any], dict[str, Any]]
"""Settings, and figures of everything that was tried."""


@dataclass(frozen=True, slots=True)
class _Steered:
    """What a shift does with the harmful prompts that are measured.

    Attributes:
        best: Of the search.
        places: Which prompts are measured.
        apart: Whether nothing was chosen on them.
        before: Their outcomes undefended.
        after: With the shift.
        talks: With the shift, in conversations.
        tried: Every trial, as data.
        thinks: Whether these answers come after a thought, and those of the search after none.
    """

    best: Trial
    places: range
    apart: bool
    before: Sequence[Outcome]
    after: Sequence[Outcome]
    talks: Sequence[Outcome]
    tried: list[dict[str, Any]]
    thinks: bool = False

    @property
    def refuses(self) -> bool:
        """Whether a steered answer may be given."""
        shown = [self.best.outcomes, self.after] if self.thinks else [self.best.outcomes]
        return all(own.count("refused") >= _STEERS * len(own) for own in shown)

    @property
    def refuses_in_talks(self) -> bool:
        """The same in a conversation."""
        return self.refuses and self.talks.count("refused") >= _STEERS * len(self.talks)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything that a calibration works with.

    Attributes:
        aligner: What was fitted.
        target: Runs the target.
        reader: Runs the second reader, if there is one.
        harmful: Harmful prompts by set.
        harmless: Harmless ones.
        limits: On over-refusal.
        grader: Tells outcomes, if it is not the fluency.
        max_new_tokens: Longest answer while searching.
        prompts: Harmful prompts on which shifts are tried.
        kept: What is known already.
        step: Told how far it is.
    """

    aligner: Aligner
    target: Engine
    reader: Engine | None
    harmful: Sets
    harmless: Sets
    limits: Limits
    grader: Grader | None
    max_new_tokens: int
    prompts: int
    kept: Kept
    step: Progress

    async def gate_only(self) -> Chosen:
        """The gate, by forwards alone."""
        asked = await ways(None, self.harmful, self.harmless, self.kept)
        settings, figures = await self._gates(asked, None)
        return {**settings, "answer": "refuse", "talk_answer": "refuse"}, {"gate only": True, **figures}

    async def all(self) -> Chosen:
        """Gate and shift."""
        asked = await ways(self.target, self.harmful, self.harmless, self.kept)
        seen = await read_ways(self.aligner, "target", self.target, asked, self.kept, self.step)
        steered = await self._shift(asked, seen)
        settings, figures = await self._gates(asked, steered)
        best = steered.best.shift
        settings |= {
            "layers": list(best.layers),
            "positions": best.positions,
            "alpha": best.alpha,
            "answer": "steer" if steered.refuses else "refuse",
            "talk_answer": "steer" if steered.refuses_in_talks else "refuse",
        }
        figures |= {
            "grader": instrument(self.grader),
            "max_new_tokens": self.max_new_tokens,
            "shifts": steered.tried,
            "measured on": "prompts that the shift was not chosen on" if steered.apart else "the prompts of the search",
            "undefended": shares(steered.before),
            "steered": shares(steered.after),
            "steered in conversations": shares(steered.talks),
        }
        return settings, figures

    async def _gates(self, asked: Ways, steered: _Steered | None) -> Chosen:
        """The gates of all readers, and what they do."""
        seen = await read_ways(self.aligner, "target", self.target, asked, self.kept, self.step)
        gate, tried = self._choose(seen, asked)
        means = seen.means(gate.layers)
        settings: dict[str, Any] = {"gate_layers": list(gate.layers), "bias": gate.bias}
        figures: dict[str, Any] = {
            "limit": self.limits.harmless,
            "look-alike limit": self.limits.look_alikes,
            "gates": _told(tried, seen, asked),
            "notes": layer_notes(gate.layers, seen.asked[0].shape[-1]),
            **_decided(gate, means, asked, steered),
        }
        if self.reader is not None:
            theirs = await read_ways(self.aligner, "anchor", self.reader, asked, self.kept, self.step)
            their_gate, their_tried = self._choose(theirs, asked)
            their_means = theirs.means(their_gate.layers)
            joint = means.with_other(their_means)
            shared = joint_gate(joint.worst[0], self.limits.of(joint.worst[1], asked.sets[1]))
            settings |= {
                "reader_gate_layers": list(their_gate.layers),
                "reader_bias": their_gate.bias,
                "both_bias": shared.bias,
            }
            figures["read by the anchor"] = {
                **_decided(their_gate, their_means, asked, steered),
                "gates": _told(their_tried, theirs, asked),
            }
            figures["read by both"] = _decided(shared, joint, asked, steered)
        return settings, figures

    def _choose(self, seen: Seen, asked: Ways) -> tuple[GateChoice, list[GateChoice]]:
        return choose_gate(seen.asked[0], self.limits.of(seen.asked[1], asked.sets[1]))

    async def _shift(self, asked: Ways, seen: Seen) -> _Steered:
        """The best shift, measured."""
        harmful = self.harmful[GIVEN]
        some = harmful[: 2 * self.prompts]
        size = min(self.prompts, len(some))
        apart = len(some) - size >= LEAST  # enough prompts that nothing is chosen on
        places = range(size, len(some)) if apart else range(size)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.step("Undefended answers", done, len(some))

        jobs = [(prompt, None) for prompt in some]
        bare = await answers(self.target, None, jobs, self.max_new_tokens, self.kept, tick)
        grading = graded_by(self.grader) if self.grader else await FluencyGrading.against(self.target, bare, self.kept)
        undefended = await grading(bare)
        search = Search(self.target, self.aligner, grading, some, undefended, self.max_new_tokens, self.kept, self.step)
        others = [_separating(asked, seen), self.aligner.artifact.settings["layers"]]
        best = await search.best(windows(self.aligner.layers, others), size)
        thinks = self.target.model.channel() is not None
        again = apart or thinks  # the search leaves out thoughts, because it writes many answers
        after = (await search.stage("measured", [best.shift], places, thinks=thinks))[0] if again else best
        forms = [in_form(FORMS[place % 2], asked.earlier, place, some[place], REFUSED) for place in places]
        talks = [(talk, best.shift) for talk in forms if talk is not None and not isinstance(talk, str)]
        said = await answers(
            self.target, self.aligner, talks, self.max_new_tokens, self.kept, lambda: None, thinks=thinks
        )
        before = [undefended[place] for place in places]
        return _Steered(best, places, apart, before, after.outcomes, await grading(said), search.tried, thinks)


def _separating(asked: Ways, seen: Seen) -> list[int]:
    """The layers that tell the prompts apart as they were given."""
    high, low = (scores[:count, 0] for scores, count in zip(seen.asked, asked.sizes, strict=True))
    return [layer for layer in range(high.shape[1]) if _balanced(high[:, layer], low[:, layer]) >= _SEPARATES]


def _decided(gate: GateChoice, means: Means, asked: Ways, steered: _Steered | None) -> dict[str, Any]:
    """What a gate does, and how it trades harmful for harmless prompts."""
    own = [scores[:count] for scores, count in zip(means.worst, asked.sizes, strict=True)]

    def guarded(threshold: float) -> dict[str, Any]:
        """What becomes of harmful prompts: guarded where the gate opens, and else the target's own."""
        if steered is None:
            return {}
        opened = (own[0][list(steered.places)] > threshold).tolist()
        after: Sequence[Outcome] = steered.after if steered.refuses else ["refused"] * len(opened)
        return shares([a if o else b for o, a, b in zip(opened, after, steered.before, strict=True)])

    return {
        "gate": gate_data(gate, means, asked),
        **({"guarded": guarded(-gate.bias)} if steered else {}),
        "curve": [
            {
                "bias": round(bias, 4),
                "harmful opened": rate(int((own[0] > -bias).sum()), len(own[0])),
                "harmless opened": rate(int((own[1] > -bias).sum()), len(own[1])),
                **guarded(-bias),
            }
            for bias in corners(*own)
        ],
    }


def _told(gates: Sequence[GateChoice], seen: Seen, asked: Ways) -> list[dict[str, Any]]:
    """Every gate that was tried, on all requests; the intervals know that several of them ask one prompt."""

    def opened(gate: GateChoice, place: int) -> dict[str, Any]:
        found = (mean_scores(seen.asked[place], gate.layers) > -gate.bias).tolist()
        return rate_by_prompt(found, asked.prompts[place])

    return [
        {
            "layers": list(gate.layers),
            "bias": round(gate.bias, 4),
            "harmful opened": opened(gate, 0),
            "harmless opened": opened(gate, 1),
            "margin": round(gate.margin, 4),
        }
        for gate in gates
    ]


def _balanced(harmful: Tensor, harmless: Tensor) -> float:
    return (float((harmful > 0).float().mean()) + float((harmless <= 0).float().mean())) / 2
