from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anchorlm.defenses.inferaligner._aligner import Aligner
from anchorlm.defenses.inferaligner._calibration import Calibration
from anchorlm.defenses.inferaligner._requests import Limits
from anchorlm.engine import runtime
from anchorlm.files import Kept
from anchorlm.judging import Grader, instrument
from anchorlm.records import Artifact, Messages, UserError, as_messages, instruments, prompts_digest, sketches
from anchorlm.steering import GIVEN, LEAST, PromptSets, classes, distinct_sets, with_activations
from anchorlm.team import EngineSettings, ModelLike, Progress, start_engine


def calibrate_inferaligner(
    artifact: str | Path | Artifact,
    target: ModelLike,
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    *,
    sets: PromptSets | None = None,
    reader: ModelLike | None = None,
    limit: float = 0.01,
    look_alike_limit: float = 0.1,
    gate_only: bool = False,
    grader: Grader | None = None,
    max_new_tokens: int = 48,
    prompts: int = 48,
    seed: int = 0,
    keep: Path | None = None,
    engine: EngineSettings | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Chooses gate, steered layers, positions and strength on validation prompts, for a stated limit on over-refusal.

    The gate: the layers and the bias that open on most harmful prompts while they open on at most `limit` of the
    harmless ones and `look_alike_limit` of the look-alikes. The shift: what turns most harmful prompts into clean
    refusals with the gate forced open, a text that the shift breaks counting twice against it. Many shifts on few
    prompts, then few on many. Where no shift turns half of them, the fixed refusal is given where the gate opens: a
    gate that sees harm must not end in compliance.

    Args:
        artifact: Of `fit_inferaligner`: itself, or its folder.
        target: The model that it was fitted on: a Hub id or folder, settings, a loaded `CausalModel`, or an engine.
        harmful: Harmful validation prompts, none of which it was fitted on. Those beyond `prompts` are kept for the
            figures, so what was searched for is not measured where it was found.
        harmless: Harmless ones. A limit of 1 % takes some hundreds of them.
        sets: More prompts of both classes for the gate, look-alikes and tasks among them, each reported by itself
            (`shipped_prompts("calibrate")`).
        reader: The second reader that the artifact was fitted on. With it, its gate (`reader = "anchor"`) and the one
            that both share (`reader = "both"`) are chosen, too, for the same limits.
        limit: Most harmless prompts on which the gate may open, as a share.
        look_alike_limit: Most look-alikes, in the same way. They have no part in `limit`.
        gate_only: Choose the gate alone, by forwards that generate nothing. The fixed refusal stands behind it.
        grader: Tells refused, complied and broken apart. By default how an answer opens and the target's own fluency
            (`FluencyGrading`). The artifact keeps its name, and no report lets it grade what it has chosen.
        max_new_tokens: Longest answer while searching.
        prompts: Harmful prompts on which shifts are tried.
        seed: Of the order of the prompts.
        keep: File in which everything that was read and generated is kept until the calibration has ended: after a
            kill the same call goes on there.
        engine: Limits of the engine that is started.
        progress: Told what is done, and how much of it.

    Returns:
        The artifact with other settings, and with everything that was tried in `figures["calibration"]`. Not yet
        saved.

    Raises:
        UserError: Too few prompts, an artifact of another model, or no gate that keeps the limits.
    """
    for name, share in (("limit", limit), ("look_alike_limit", look_alike_limit)):
        if not 0 <= share < 1:
            raise UserError(f"{name} = {share} must lie between 0 and 1: it is the share of harmless prompts gated.")
    if prompts < LEAST or max_new_tokens < 1:
        raise UserError(f"prompts must be at least {LEAST} and max_new_tokens at least 1.")
    bad, good = classes(harmful, harmless, seed)
    more = sets or PromptSets()
    one, other = (
        {name: list(map(as_messages, own)) for name, own in named.items()}
        for named in distinct_sets({GIVEN: bad, **more.harmful}, {GIVEN: good, **more.harmless})
    )
    found = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact, "inferaligner")
    limits = engine or EngineSettings()
    running = with_activations(start_engine(target, limits, []), "target")
    second = None if reader is None else with_activations(start_engine(reader, limits, []), "reader")
    aligner = Aligner.load(found, running, second)
    with Kept(keep, f"{found.id} {found.models['target'].name}") as kept:
        job = Calibration(
            aligner,
            running,
            second,
            one,
            other,
            limits=Limits(limit, look_alike_limit),
            grader=grader,
            max_new_tokens=max_new_tokens,
            prompts=prompts,
            kept=kept,
            step=progress or (lambda what, done, total: None),
        )
        settings, figures = runtime().run(job.gate_only() if gate_only else job.all())
    figures["data"] = {
        "harmful": {"n": len(bad), "digest": prompts_digest(bad), "sketches": sketches(bad)},
        "harmless": {"n": len(good), "digest": prompts_digest(good), "sketches": sketches(good)},
        **more.data,
        "seed": seed,
    }
    own = {} if gate_only else {"calibration": instrument(grader)}
    return replace(
        found,
        data={**found.data, "instruments": {**instruments(found), **own}},
        settings={**found.settings, **settings},
        figures={**found.figures, "calibration": figures},
    )
