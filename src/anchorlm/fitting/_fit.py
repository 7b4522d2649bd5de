from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from anchorlm import steering
from anchorlm.engine import Engine, runtime
from anchorlm.fitting._notes import fit_notes, form_figures
from anchorlm.fitting._prompts import classes
from anchorlm.records import Access, Artifact, Messages, UserError
from anchorlm.steering import GIVEN, Across, PromptSets, Whitening, check_options, distinct_sets
from anchorlm.team import EngineSettings, ModelLike, Started, start_engine


def fit_inferaligner(
    target: ModelLike,
    anchor: ModelLike,
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    *,
    sets: PromptSets | None = None,
    reader: ModelLike | None = None,
    whitening: Whitening = "fisher",
    across: Across = "auto",
    holdout: float = 0.25,
    seed: int = 0,
    engine: EngineSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Artifact:
    """Fits InferAligner: the gate on the target, the vectors on the anchor (`anchorlm.steering.fit_inferaligner`).

    Args:
        target: The model to guard: a Hub id or folder, its settings, a loaded `CausalModel`, or an engine.
        anchor: The safety-aligned model, likewise.
        harmful: Harmful prompts; a text is one turn of the user.
        harmless: Harmless ones in the same style, the target's domain among them.
        sets: More prompts of both classes, look-alikes and tasks among them, each reported by itself
            (`shipped_prompts("train", "fit")`).
        reader: An aligned model whose activations the gate may read, too, if it is not the anchor.
        whitening: `none`: the gate reads along the mean difference, as in the paper; `fisher`: whitened (ours).
        across: Whether vectors are mapped between the models; `auto` where they are of two families.
        holdout: Share of the prompts that measures only.
        seed: Of the split.
        engine: Limits of the engines that are started.
        progress: Told how many of how many prompts have been read.

    Returns:
        The artifact, not yet saved.

    Raises:
        UserError: Too few prompts, a model that cannot be loaded, or models that cannot be combined.
    """
    check_options(whitening, across)
    more = sets or PromptSets()
    classes(harmful, harmless)  # what is wrong with them is said before a weight is loaded
    named = distinct_sets({GIVEN: harmful, **more.harmful}, {GIVEN: harmless, **more.harmless})
    limits = engine or EngineSettings()
    started: Started = []
    artifact = runtime().run(
        steering.fit_inferaligner(
            with_activations(start_engine(target, limits, started), "target"),
            with_activations(start_engine(anchor, limits, started), "anchor"),
            harmful,
            harmless,
            sets=sets,
            reader=None if reader is None else with_activations(start_engine(reader, limits, started), "reader"),
            whitening=whitening,
            across=across,
            holdout=holdout,
            seed=seed,
            progress=progress,
        )
    )
    one, other = ([prompt for own in found.values() for prompt in own] for found in named)
    figures = {**artifact.figures, "form": form_figures(one, other)}
    return replace(artifact, figures={**figures, "notes": fit_notes(figures, artifact.settings)})


def with_activations(engine: Engine, role: str) -> Engine:
    """The engine, if it lets activations be read.

    Raises:
        UserError: It does not.
    """
    if engine.access < Access.ACTIVATIONS:
        raise UserError(
            f"InferAligner reads activations, but the {role}'s engine offers {engine.access.name.lower()}: load the "
            f"{role} with transformers."
        )
    return engine
