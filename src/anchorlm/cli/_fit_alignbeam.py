from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchorlm.cli._fit import (
    AllowCode,
    Changes,
    Column,
    RecipeFile,
    Target,
    _next,
    _prompts,
    _shown,
    fit,
)
from anchorlm.cli._fit_progress import fit_progress
from anchorlm.cli._fit_shown import _percent, _table
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.records import Messages
    from anchorlm.steering import PromptSets

__all__ = ["fit"]

_SHOWN = ("guided", "in full")


@fit.command("alignbeam")
def fit_alignbeam(
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the artifact. `alignbeam` in the target's folder is found by itself."),
    ],
    target: Target = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="Aligned model that guides. It can be of any family.")
    ] = None,
    artifact: Annotated[
        Path | None,
        typer.Option("--artifact", help="Folder of InferAligner's artifact. Its gate is then part of the evidence."),
    ] = None,
    harmful: Annotated[str | None, typer.Option("--harmful", help="More harmful prompts.")] = None,
    harmless: Annotated[str | None, typer.Option("--harmless", help="More harmless prompts, of your domain.")] = None,
    missed: Annotated[
        float, typer.Option("--missed", help="The largest share of harmful prompts that may go unguided.")
    ] = 0.03,
    disturbed: Annotated[
        float, typer.Option("--disturbed", help="The largest share of harmless prompts that may be refused at once.")
    ] = 0.07,
    recipe: RecipeFile = None,
    changes: Changes = None,
    column: Column = None,
    allow_code: AllowCode = False,
) -> None:
    """Finds how an anchor's first token and a gate show harm, and chooses where AlignBeam's alpha begins."""
    from anchorlm.cli._loading import quiet_libraries
    from anchorlm.cli._recipes import make_recipe
    from anchorlm.defenses.alignbeam import save_evidence
    from anchorlm.files import check_folder
    from anchorlm.records import Artifact
    from anchorlm.steering import shipped_prompts

    check_folder(out, "alignbeam")
    described = make_recipe(recipe, target=target, anchor=anchor, changes=changes or [])
    if described.anchor is None:
        raise UserError("There is no aligned model that guides: give --anchor MODEL.")
    described.check_places()
    if artifact is not None:
        Artifact.check(artifact, "inferaligner")
    own: list[list[Messages | str]] = [
        [] if source is None else _prompts(source, column) for source in (harmful, harmless)
    ]
    parts = [
        _with_own(shipped_prompts("fit"), *(prompts[::2] for prompts in own)),
        _with_own(shipped_prompts("calibrate"), *(prompts[1::2] for prompts in own)),
    ]
    quiet_libraries()
    from anchorlm.defenses.alignbeam import fit_alignbeam as fit_artifact

    with fit_progress() as step:
        found = fit_artifact(
            described.target,
            described.anchor,
            *parts,
            artifact=artifact,
            missed=missed,
            disturbed=disturbed,
            engine=described.engine,
            progress=step,
        )
    save_evidence(found, out)
    _show(found.figures, found.settings)
    place = {"defense.evidence": _shown(out, recipe)}
    if artifact is not None:
        place["defense.artifact"] = _shown(artifact, recipe)
    typer.echo(f"Written to {out}. Next:\n" + _next(recipe, described, "alignbeam", changes, place)
               + (f" --anchor {quote(described.anchor.path)}" if recipe is None else ""))  # fmt: skip


def _with_own(sets: PromptSets, harmful: list[Messages | str], harmless: list[Messages | str]) -> PromptSets:
    from anchorlm.steering import GIVEN, PromptSets

    def more(of: Mapping[str, Any], prompts: list[Messages | str]) -> dict[str, Any]:
        return {**of, **({GIVEN: prompts} if prompts else {})}

    return PromptSets(more(sets.harmful, harmful), more(sets.harmless, harmless))


def _show(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """How far the evidence goes, on prompts that chose its thresholds."""
    rows = [
        (name, str(one["n"]), *(_percent(one[what]["rate"], *one[what]["interval"]) for what in _SHOWN))
        for name, one in figures["sets"].items()
    ]
    _table(("prompts", "n", "guided or refused", "refused at once"), rows)
    gate = f", of the gate {figures['auroc of the gate']:.2f}" if "auroc of the gate" in figures else ""
    typer.echo(
        f"%, with 95 % intervals, on the prompts that chose the thresholds ({settings['low']:.2f} and "
        f"{settings['high']:.2f}). AUROC of harmful against harmless ones: "
        f"{figures['auroc']:.2f}; of the anchor's first token {figures['auroc of the opening']:.2f}{gate}."
    )
