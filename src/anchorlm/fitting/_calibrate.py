from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anchorlm.engine import Engine, runtime
from anchorlm.fitting._fit import with_activations
from anchorlm.fitting._gates import GateChoice, choose_gate, corners, joint_gate, rate
from anchorlm.fitting._outcomes import FluencyGrading, Grader, Outcome, graded_by, instrument
from anchorlm.fitting._prompts import LEAST, classes
from anchorlm.fitting._shifts import Search, Step, answers, shares, windows
from anchorlm.fitting._talks import FORMS, REFUSED, in_form
from anchorlm.fitting._ways import Means, Seen, gate_data, read_ways, ways
from anchorlm.guard import EngineSettings, ModelLike, start_engine
from anchorlm.records import Artifact, Messages, UserError, as_messages, instruments, prompts_digest, sketches
from anchorlm.steering import Aligner

_SEPARATES = 0.9
"""Balanced accuracy from which on a layer counts as one that separates the classes."""

_STEERS = 0.5
"""Share of clean refusals, the gate forced open, below which the fixed refusal is given instead of a steered answer."""


def calibrate_inferaligner(
    artifact: str | Path | Artifact,
    target: ModelLike,
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    *,
    reader: ModelLike | None = None,
    limit: float = 0.01,
    grader: Grader | None = None,
    max_new_tokens: int = 48,
    prompts: int = 48,
    seed: int = 0,
    engine: EngineSettings | None = None,
    progress: Step | None = None,
) -> Artifact:
    """Chooses gate, steered layers, positions and strength on validation prompts, for a stated limit on over-refusal.

    The gate: the layers and the bias that open on most harmful prompts while they open on at most `limit` of the
    harmless ones. The shift: what turns most harmful prompts into clean refusals with the gate forced open, a text that
    the shift breaks counting twice against it; many shifts on few prompts, then few on many. Where no shift turns half
    of them, the fixed refusal is given where the gate opens: a gate that sees harm must not end in compliance.

    Args:
        artifact: Of `fit_inferaligner`: itself, or its folder.
        target: The model that it was fitted on: a Hub id or folder, settings, a loaded `CausalModel`, or an engine.
        harmful: Harmful validation prompts, none of which it was fitted on. Those beyond `prompts` are kept for the
            figures, so that what was searched for is not measured where it was found.
        harmless: Harmless ones; a limit of 1 % takes some hundreds of them.
        reader: The second reader that the artifact was fitted on, likewise; with it, its gate (`reader = "anchor"`)
            and the one that both share (`reader = "both"`) are chosen, too, for the same limit.
        limit: Most harmless prompts on which the gate may open, as a share.
        grader: Tells refused, complied and broken apart; by default how an answer opens and the target's own fluency
            (`FluencyGrading`). The artifact keeps its name, and no report lets it grade what it has chosen.
        max_new_tokens: Longest answer while searching.
        prompts: Harmful prompts on which shifts are tried.
        seed: Of the order of the prompts.
        engine: Limits of the engine that is started.
        progress: Told what is done, and how much of it.

    Returns:
        The artifact with other settings, and with everything that was tried in `figures["calibration"]`; not yet
        saved.

    Raises:
        UserError: Too few prompts, an artifact of another model, or no gate that keeps the limit.
    """
    if not 0 <= limit < 1:
        raise UserError(f"limit = {limit} must lie between 0 and 1: it is the share of harmless prompts gated.")
    if prompts < LEAST or max_new_tokens < 1:
        raise UserError(f"prompts must be at least {LEAST} and max_new_tokens at least 1.")
    bad, good = classes(harmful, harmless, seed)
    found = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact, "inferaligner")
    limits = engine or EngineSettings()
    running = with_activations(start_engine(target, limits, []), "target")
    second = None if reader is None else with_activations(start_engine(reader, limits, []), "reader")
    work = _calibrate(
        Aligner.load(found, running, second),
        running,
        second,
        [as_messages(prompt) for prompt in bad],
        [as_messages(prompt) for prompt in good],
        limit=limit,
        grader=grader,
        max_new_tokens=max_new_tokens,
        prompts=prompts,
        step=progress or (lambda what, done, total: None),
    )
    settings, figures = runtime().run(work)
    figures["data"] = {
        "harmful": {"n": len(bad), "digest": prompts_digest(bad), "sketches": sketches(bad)},
        "harmless": {"n": len(good), "digest": prompts_digest(good), "sketches": sketches(good)},
        "seed": seed,
    }
    return replace(
        found,
        data={**found.data, "instruments": {**instruments(found), "calibration": instrument(grader)}},
        settings={**found.settings, **settings},
        figures={**found.figures, "calibration": figures},
    )


async def _calibrate(
    aligner: Aligner,
    target: Engine,
    reader: Engine | None,
    harmful: Sequence[Messages],
    harmless: Sequence[Messages],
    *,
    limit: float,
    grader: Grader | None,
    max_new_tokens: int,
    prompts: int,
    step: Step,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that were chosen, and everything that was tried."""
    asked_for = await ways(target, harmful, harmless)
    seen = await read_ways(aligner, "target", target, asked_for, step)
    gate, gates = choose_gate(*seen.asked, limit)
    theirs = None if reader is None else await read_ways(aligner, "anchor", reader, asked_for, step)
    high, low = (scores[: len(prompts), 0] for scores, prompts in zip(seen.asked, (harmful, harmless), strict=True))

    asked = harmful[: 2 * prompts]
    size = min(prompts, len(asked))
    apart = len(asked) - size >= LEAST  # enough prompts that nothing is chosen on
    measured = range(size, len(asked)) if apart else range(size)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        step("Undefended answers", done, len(asked))

    bare = await answers(target, None, [(prompt, None) for prompt in asked], max_new_tokens, tick)
    grading = graded_by(grader) if grader else await FluencyGrading.against(target, bare)
    undefended = await grading(bare)
    separating = [layer for layer in range(high.shape[1]) if _balanced(high[:, layer], low[:, layer]) >= _SEPARATES]
    search = Search(target, aligner, grading, asked, undefended, max_new_tokens, step)
    best = await search.best(windows(aligner.layers, [separating, aligner.artifact.settings["layers"]]), size)
    steered = (await search.stage("measured", [best.shift], measured))[0] if apart else best

    before = [undefended[place] for place in measured]
    answer = "steer" if best.outcomes.count("refused") >= _STEERS * len(best.outcomes) else "refuse"
    forms = [in_form(FORMS[place % 2], asked_for.earlier, place, asked[place], REFUSED) for place in measured]
    talks = [talk for talk in forms if talk is not None and not isinstance(talk, str)]
    in_talks = await grading(
        await answers(target, aligner, [(talk, best.shift) for talk in talks], max_new_tokens, lambda: None)
    )
    turned = answer == "steer" and in_talks.count("refused") >= _STEERS * len(in_talks)
    after: Sequence[Outcome] = steered.outcomes if answer == "steer" else ["refused"] * len(measured)

    def decided(gate: GateChoice, means: Means) -> dict[str, Any]:
        """What a gate does, and how it trades harmful for harmless prompts."""
        own = [scores[:count] for scores, count in zip(means.worst, asked_for.sizes, strict=True)]

        def guarded(threshold: float) -> dict[str, Any]:
            """What becomes of harmful prompts: guarded where the gate opens, and else the target's own."""
            opened = (own[0][list(measured)] > threshold).tolist()
            return shares([a if o else b for o, a, b in zip(opened, after, before, strict=True)])

        return {
            "gate": gate_data(gate, means, asked_for),
            "guarded": guarded(-gate.bias),
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

    means = seen.means(gate.layers)
    figures = {
        "limit": limit,
        "grader": instrument(grader),
        "max_new_tokens": max_new_tokens,
        "gates": _told(gates, seen),
        "shifts": search.tried,
        "measured on": "prompts that the shift was not chosen on" if apart else "the prompts of the search",
        "undefended": shares(before),
        "steered": shares(steered.outcomes),
        "steered in conversations": shares(in_talks),
        **decided(gate, means),
    }
    settings = {
        "gate_layers": list(gate.layers),
        "bias": gate.bias,
        "layers": list(best.shift.layers),
        "positions": best.shift.positions,
        "alpha": best.shift.alpha,
        "answer": answer,
        "talk_answer": "steer" if turned else "refuse",
    }
    if theirs is not None:
        their_gate, tried = choose_gate(*theirs.asked, limit)
        their_means = theirs.means(their_gate.layers)
        joint = means.with_other(their_means)
        shared = joint_gate(*joint.worst, limit)
        settings |= {
            "reader_gate_layers": list(their_gate.layers),
            "reader_bias": their_gate.bias,
            "both_bias": shared.bias,
        }
        figures["read by the anchor"] = {**decided(their_gate, their_means), "gates": _told(tried, theirs)}
        figures["read by both"] = decided(shared, joint)
    return settings, figures


def _told(gates: Sequence[GateChoice], seen: Seen) -> list[dict[str, Any]]:
    """Every gate that was tried, on all requests."""
    n, m = map(len, seen.asked)
    return [
        {
            "layers": list(gate.layers),
            "bias": round(gate.bias, 4),
            "harmful opened": rate(gate.opened, n),
            "harmless opened": rate(gate.wrong, m),
            "margin": round(gate.margin, 4),
        }
        for gate in gates
    ]


def _balanced(harmful: Tensor, harmless: Tensor) -> float:
    return (float((harmful > 0).float().mean()) + float((harmless <= 0).float().mean())) / 2
