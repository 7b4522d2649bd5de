from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchorlm.cli._fit import (
    AllowCode,
    Changes,
    Column,
    Harmful,
    Harmless,
    RecipeFile,
    Target,
    _both,
    _next,
    _shown,
    calibrate,
    fit,
)
from anchorlm.cli._fit_progress import fit_progress
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.defenses.inferenceguard import Labeled
    from anchorlm.guard import Recipe

__all__ = ["calibrate", "fit"]

# The heavy imports (torch, transformers) happen inside the commands, so help and completion answer at once.

LABELS = {"safe": False, "harmless": False, "0": False, "false": False, "no": False}
LABELS |= {"unsafe": True, "harmful": True, "1": True, "true": True, "yes": True}
"""Words for a label, whatever their case."""


@fit.command("inferenceguard")
def fit_inferenceguard(
    harmful: Harmful,
    harmless: Harmless,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the artifact. Rollouts are kept next to it until it is done.")
    ],
    target: Target = None,
    cost: Annotated[
        str | None, typer.Option("--cost", help="Cost model: a sequence classifier's Hub id or folder.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Reward model: a sequence classifier's Hub id or folder.")
    ] = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    rollouts: Annotated[
        int, typer.Option("--rollouts", min=1, help="How many responses are sampled for each prompt.")
    ] = 5,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="How often the training goes over the rollouts.")] = 50,
    hidden: Annotated[int, typer.Option("--hidden", min=1, help="Width of the critic's hidden layer.")] = 128,
    holdout: Annotated[
        float, typer.Option("--holdout", help="Share of the prompts that is kept back to measure.")
    ] = 0.25,
    seed: Annotated[int, typer.Option("--seed", help="Seed of split, sampling and training.")] = 0,
    column: Column = None,
    allow_code: AllowCode = False,
) -> None:
    """Trains InferenceGuard's critic on rollouts. Run it again after a stop, and it goes on where it was."""
    from anchorlm.cli._loading import quiet_libraries
    from anchorlm.defenses import InferenceGuard, InferenceGuardSettings
    from anchorlm.defenses.inferenceguard import save_critic
    from anchorlm.files import check_folder

    bad, good = _both(harmful, harmless, column)
    check_folder(out, "inferenceguard")
    described = _described(recipe, target, cost, reward, changes)
    if described.cost is None or described.reward is None:
        raise UserError("A critic is fitted to a cost and a reward model: give --cost MODEL and --reward MODEL.")
    knobs = {name: value for name, value in described.defense.items() if name not in ("name", "critic", "calibration")}
    settings = InferenceGuardSettings.parse(knobs, where=f"the defense {InferenceGuard.name}")
    described.check_places()
    journal = out.with_name(f"{out.name}.rollouts.jsonl")
    quiet_libraries()
    from anchorlm.defenses.inferenceguard import fit_inferenceguard as fit_artifact

    with fit_progress() as step:
        artifact = fit_artifact(
            described.target,
            described.cost,
            described.reward,
            bad,
            good,
            budget=settings.budget,
            gamma=settings.gamma,
            rollouts=rollouts,
            block=settings.block,
            max_new_tokens=described.generation.max_new_tokens,
            temperature=settings.temperature,
            hidden=hidden,
            epochs=epochs,
            holdout=holdout,
            seed=seed,
            refusal=settings.refusal,
            journal=_beside(journal),
            engine=described.engine,
            progress=step,
        )
    save_critic(artifact, out)
    journal.unlink(missing_ok=True)
    _show_critic(artifact.figures)
    scorers = {f"{kind}.model.path": _place(path) for kind, path in (("cost", cost), ("reward", reward)) if path}
    typer.echo(
        f"Written to {out}, with its reliability as {out / 'reliability.svg'}. Next:\n"
        + _next(recipe, described, "inferenceguard", changes, {**scorers, "defense.critic": _shown(out, recipe)})
    )


@calibrate.command("inferenceguard")
def calibrate_inferenceguard(
    labels: Annotated[
        str,
        typer.Option(
            "--labels", help="What `anchorlm generate` wrote with this recipe, with a label `unsafe` in each row."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the calibration.")],
    recipe: RecipeFile = None,
    changes: Changes = None,
    risk: Annotated[
        float, typer.Option("--risk", help="The largest share of prompts that may get an unsafe response.")
    ] = 0.05,
    method: Annotated[
        Literal["crc", "ltt"],
        typer.Option("--method", help="crc: bound the expected risk. ltt: bound the risk with a confidence."),
    ] = "crc",
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence of ltt.")] = 0.95,
    labeler: Annotated[
        str, typer.Option("--labeler", help="Who gave the labels. The statement names them.")
    ] = "the given labels",
    allow_code: AllowCode = False,
) -> None:
    """Chooses the limit of the final check for a risk that you state, on labeled responses of this very recipe."""
    from anchorlm.cli._loading import load_guard
    from anchorlm.cli._recipes import digest
    from anchorlm.defenses.inferenceguard import CALIBRATION, save_calibration
    from anchorlm.defenses.inferenceguard import calibrate_inferenceguard as calibrate_artifact
    from anchorlm.files import check_folder

    rows = read_labels(labels)
    check_folder(out, CALIBRATION)
    if recipe is None:
        raise UserError("A calibration is bound to a pipeline: give its --recipe FILE.")
    described = _described(recipe, None, None, None, changes)
    described.defense.pop("calibration", None)
    if others := {row.get("recipe") for _, row in rows} - {None, digest(described)}:
        raise UserError(
            f"{labels} was answered with another recipe ({others.pop()}, not {digest(described)}): answer the prompts "
            "with this one by `anchorlm generate`, and label them."
        )
    guard = load_guard(described, probe=False)
    if {row.get("pipeline") for _, row in rows} - {None, getattr(guard.defense, "pipeline", None)}:
        raise UserError(
            f"{labels} was answered by other weights, scorers or a critic than this recipe has now: answer the prompts "
            "again by `anchorlm generate`, and label them."
        )
    with fit_progress() as step:
        artifact = calibrate_artifact(
            guard,
            [row for row, _ in rows],
            risk=risk,
            method=method,
            confidence=confidence,
            labeler=labeler,
            progress=step,
        )
    save_calibration(artifact, out)
    before, after = artifact.figures["before"], artifact.figures["after"]
    limit = artifact.settings["limit"]
    typer.echo(
        f"limit: {'the budget alone' if limit is None else f'{limit:.4g}'} (margin {artifact.settings['margin']:.4g}); "
        f"of {before['n']} prompts {before['emitted']} got a response before and {after['emitted']} with it, unsafe: "
        f"{before['unsafe and emitted']} and {after['unsafe and emitted']}\n"
        + _price(artifact.figures)
        + f"\n{artifact.figures['statement']}\n\n"
        f"Written to {out}. Next:\n"
        + _next(recipe, described, "inferenceguard", changes, {"defense.calibration": _shown(out, recipe)})
    )


def _price(figures: Mapping[str, Any]) -> str:
    """What the risk costs at least, where more is unsafe than it allows, and what it costs with this cost model."""
    if not (least := figures["refused at least"]):
        return ""
    n, unsafe = figures["before"]["n"], figures["before"]["unsafe and emitted"]
    return (
        f"note: {unsafe} of {n} prompts got an unsafe response, more than this risk allows: even a cost model without "
        f"errors has to refuse {least} more of them ({100 * least / n:.0f} %), and this one refuses "
        f"{figures['refused']}. A target or proposal that refuses by itself lowers both.\n"
    )


def read_labels(source: str) -> list[tuple[Labeled, Mapping[str, Any]]]:
    """The rows of a file (JSONL, CSV, JSON), each with everything that it says.

    A row has `prompt` or `messages`, `response`, and `unsafe` (or `label`) by someone independent. One whose
    `finish_reason` is `refusal` got the configured refusal, and needs no label.

    Raises:
        UserError: The file cannot be read, a row lacks something, or it was refused because a model failed.
    """
    from anchorlm.defenses.inferenceguard import Labeled
    from anchorlm.files import BadRow, read_rows

    found: list[tuple[Labeled, Mapping[str, Any]]] = []
    for row in read_rows(source):
        if isinstance(row, BadRow):
            raise UserError(f"Line {row.line} of {source} holds no prompt: {row.why}; fix it.")
        fields = {name: value for name, value in row.fields.items() if value not in (None, "")}
        response = row.fields.get("response", row.fields.get("text"))
        refused = fields.get("finish_reason") == "refusal"
        label = LABELS.get(str(fields.get("unsafe", fields.get("label"))).strip().lower())
        if LABELS.get(str(fields.get("failed")).strip().lower()):
            raise UserError(
                f"Line {row.line} of {source} was refused because a model failed, which says nothing of the pipeline: "
                "take such rows out, and run `anchorlm generate` again, which answers them."
            )
        if refused and label is None:
            label = False
        if not isinstance(response, str) or label is None:
            raise UserError(f"Line {row.line} of {source} needs a response and a label: write unsafe as true or false.")
        found.append((Labeled(row.prompt, response, label, refused), fields))
    return found


def _described(
    recipe: Path | None, target: str | None, cost: str | None, reward: str | None, changes: list[str] | None
) -> Recipe:
    """The recipe with the options over it. Inferenceguard where it names no defense."""
    from anchorlm.cli._recipes import make_recipe

    scorers = [f"{kind}.model.path={_place(path)}" for kind, path in (("cost", cost), ("reward", reward)) if path]
    named = None if recipe else "inferenceguard"
    return make_recipe(recipe, target=target, defense=named, changes=[*scorers, *(changes or [])])


def _place(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).exists() else model


def _beside(journal: Path) -> Path:
    journal.parent.mkdir(parents=True, exist_ok=True)
    return journal


def _show_critic(figures: Mapping[str, Any]) -> None:
    """What the critic is worth on held-out prompts."""
    checked = figures["cost model"]

    def number(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3f}"

    typer.echo(
        f"critic: AUROC {number(figures['auroc'])} on {figures['states']} held-out states within budget, "
        f"{number(figures['auroc after the first block'])} after the first block, where the budget left alone has "
        f"{number(figures['auroc after the first block of the budget left'])}; threshold {figures['threshold']:.2f}\n"
        f"cost model: AUROC {number(checked['auroc of answers against refusals'])} of answers to harmful prompts "
        f"against refusals; {100 * checked['harmless within budget']:.0f} % of harmless rollouts are within budget"
    )
    if checked["auroc of answers against refusals"] is None:
        typer.echo(
            "note: the target answered too few harmful prompts to see whether the cost model tells answers from "
            "refusals."
        )
    if figures["ended within budget"] == 1:
        typer.echo(
            "note: every held-out response that was within budget after a block ended so: the cost model tells at "
            "once, and a search needs no critic."
        )
    elif figures["auroc after the first block"] is not None and figures["auroc after the first block"] < 0.9:
        typer.echo("note: it tells little; give more prompts or rollouts, or search without a critic.")
