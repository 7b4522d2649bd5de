from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anchorlm.cli._fit_progress import fit_progress
from anchorlm.cli._fit_shown import show_choice, show_layers
from anchorlm.files import BadRow, read_rows
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.guard import Recipe
    from anchorlm.records import Messages
    from anchorlm.steering import PromptSets

# The heavy imports (torch, transformers) happen inside the commands, so help and completion answer at once.

fit = typer.Typer(help="Fits a defense to a model.", no_args_is_help=True)
calibrate = typer.Typer(help="Chooses the settings of a fitted defense on validation prompts.", no_args_is_help=True)

Target = Annotated[str | None, typer.Option("--target", help="Model to guard: Hub id or folder.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", "-r", help="TOML file whose sections target and anchor say how to load them.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A value of the recipe, such as target.dtype=bfloat16. You can repeat it.", metavar="A.B=C"
    ),
]
ReaderOption = Annotated[
    str | None,
    typer.Option("--reader", help="Aligned model that the gate may read, too. By default the anchor."),
]
Harmful = Annotated[str, typer.Option("--harmful", help="Harmful prompts: JSONL, CSV, JSON list or text, also .gz.")]
Harmless = Annotated[
    str, typer.Option("--harmless", help="Harmless prompts in the same style. Add some of your domain.")
]
LookAlikes = Annotated[
    str | None,
    typer.Option("--look-alikes", help="Harmless prompts in alarming words. They are added to the shipped ones."),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="Task prompts of your domain. They are added to the shipped ones.")
]
Shipped = Annotated[
    bool,
    typer.Option(
        "--shipped/--no-shipped", help="Also use the English look-alikes and tasks that come with the library."
    ),
]


def allowed(wanted: bool) -> bool:
    """Lets recipes name Python functions, if the operator wants that."""
    if wanted:
        from anchorlm.team import allow_code

        allow_code()
    return wanted


AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Run the Python functions that the recipe names as judges or scorers.",
                 callback=allowed),
]  # fmt: skip
Column = Annotated[str | None, typer.Option("--column", help="Column or field that holds the prompt.")]


@fit.callback()
@calibrate.callback()
def _group() -> None:
    """Keeps the defense's name a command, though there is only one."""


@fit.command("inferaligner")
def fit_inferaligner(
    harmful: Harmful,
    harmless: Harmless,
    out: Annotated[Path, typer.Option("--out", help="Folder for the artifact.")],
    target: Target = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="Aligned model that lends its vectors. It can be of any family.")
    ] = None,
    reader: ReaderOption = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    whitening: Annotated[
        Literal["fisher", "none"],
        typer.Option("--whitening", help="How directions are found. none: along the mean difference, as in the paper."),
    ] = "fisher",
    pooling: Annotated[
        Literal["both", "end"], typer.Option("--pooling", help="end: read the last token alone, as in the paper.")
    ] = "both",
    across: Annotated[
        Literal["auto", "always", "never"],
        typer.Option("--across", help="Whether vectors are mapped from one model to the other."),
    ] = "auto",
    look_alikes: LookAlikes = None,
    tasks: Tasks = None,
    shipped: Shipped = True,
    holdout: Annotated[
        float, typer.Option("--holdout", help="Share of the prompts that is kept back to measure.")
    ] = 0.25,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split.")] = 0,
    column: Column = None,
    allow_code: AllowCode = False,
) -> None:
    """Finds where a target's activations show harm, and by which vectors an aligned model refuses."""
    from anchorlm.cli._loading import quiet_libraries
    from anchorlm.cli._recipes import make_recipe
    from anchorlm.defenses.inferaligner import save_artifact
    from anchorlm.files import check_folder

    bad, good = _both(harmful, harmless, column)
    sets = _sets("fit", look_alikes, tasks, column, shipped=shipped)
    check_folder(out, "inferaligner")
    described = make_recipe(recipe, target=target, anchor=anchor, changes=changes or [])
    if described.anchor is None:
        raise UserError("There is no aligned model to take the vectors from: give --anchor MODEL.")
    described.check_places()
    second = make_recipe(recipe, target=target, anchor=reader, changes=changes or []).anchor if reader else None
    quiet_libraries()
    from anchorlm.defenses.inferaligner import fit_inferaligner as fit_artifact

    with fit_progress() as step:
        artifact = fit_artifact(
            described.target,
            described.anchor,
            bad,
            good,
            sets=sets,
            reader=second,
            whitening=whitening,
            across=across,
            pooling=pooling,
            holdout=holdout,
            seed=seed,
            engine=described.engine,
            progress=lambda done, total: step("Reading the prompts", done, total),
        )
    save_artifact(artifact, out)
    show_layers(artifact.figures, artifact.settings)
    typer.echo(
        f"Written to {out}. Next, choose its settings on prompts that it has not seen:\n"
        f"  anchorlm calibrate inferaligner --artifact {quote(str(out))} {_model(recipe, described)} --harmful FILE "
        "--harmless FILE"
    )


@calibrate.command("inferaligner")
def calibrate_inferaligner(
    harmful: Harmful,
    harmless: Harmless,
    artifact: Annotated[
        str | None, typer.Option("--artifact", help="Folder of the artifact. By default the recipe's.")
    ] = None,
    target: Target = None,
    reader: Annotated[
        str | None, typer.Option("--reader", help="The artifact's second reader. Its gate is then chosen, too.")
    ] = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    look_alikes: LookAlikes = None,
    tasks: Tasks = None,
    shipped: Shipped = True,
    limit: Annotated[
        float, typer.Option("--limit", help="The largest share of harmless prompts on which the gate may open.")
    ] = 0.01,
    look_alike_limit: Annotated[float, typer.Option("--look-alike-limit", help="The same for look-alikes.")] = 0.1,
    gate_only: Annotated[
        bool, typer.Option("--gate-only", help="Choose only the gate, in minutes. Behind it stands the fixed refusal.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to. By default the artifact's.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest answer that is tried, in tokens.")
    ] = 48,
    prompts: Annotated[int, typer.Option("--prompts", help="How many harmful prompts the search may use.")] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the order of the prompts.")] = 0,
    column: Column = None,
    allow_code: AllowCode = False,
) -> None:
    """Chooses gate, layers, positions and strength for the limit on over-refusal that you state."""
    from anchorlm.cli._loading import quiet_libraries
    from anchorlm.cli._recipes import make_recipe
    from anchorlm.defenses.inferaligner import save_artifact
    from anchorlm.files import check_folder
    from anchorlm.records import Artifact

    bad, good = _both(harmful, harmless, column)
    sets = _sets("calibrate", look_alikes, tasks, column, shipped=shipped)
    described = make_recipe(recipe, target=target, anchor=reader, changes=changes or [])
    folder = artifact or _artifact(described)
    Artifact.check(folder, "inferaligner")
    place = check_folder(out or folder, "inferaligner")
    described.check_places()
    reads = reader is not None or _reads_anchor(described)
    quiet_libraries()
    found = Artifact.load(folder, "inferaligner")
    from anchorlm.defenses.inferaligner import calibrate_inferaligner as calibrate_artifact

    with fit_progress() as step:
        calibrated = calibrate_artifact(
            found,
            described.target,
            bad,
            good,
            sets=sets,
            reader=described.anchor if reads else None,
            limit=limit,
            look_alike_limit=look_alike_limit,
            gate_only=gate_only,
            max_new_tokens=max_new_tokens,
            prompts=prompts,
            seed=seed,
            keep=place.resolve().with_name(f"{place.resolve().name}.calibration.jsonl"),
            engine=described.engine,
            progress=step,
        )
    save_artifact(calibrated, place)
    figures = calibrated.figures["calibration"]
    again = any(figures["data"][name]["digest"] == found.data[name]["digest"] for name in ("harmful", "harmless"))
    show_choice(figures, calibrated.settings, again=again)
    both = {"defense.reader": "both"} if reads else {}
    anchor = f" --anchor {quote(described.anchor.path)}" if reads and described.anchor else ""
    own = {"defense.artifact": _shown(place, recipe), **both}
    typer.echo(
        f"Written to {place}, with the trade-off as {place / 'tradeoff.svg'}. Next:\n"
        + _next(recipe, described, "inferaligner", changes, own)
        + anchor
    )


def _artifact(recipe: Recipe) -> str:
    folder = recipe.defense.get("artifact")
    if not isinstance(folder, str):
        raise UserError("There is nothing to calibrate: give --artifact DIR, made by `anchorlm fit inferaligner`.")
    return folder


def _reads_anchor(recipe: Recipe) -> bool:
    """Whether it is the recipe's anchor that the gate reads. An anchor that only guides may be another model."""
    readers = {recipe.defense.get("reader"), recipe.defense.get("gate_reader")}
    return not readers.isdisjoint(("anchor", "both"))


def _model(file: Path | None, described: Recipe) -> str:
    """How the next command names the same target."""
    return f"--recipe {quote(str(file))}" if file else f"--target {quote(described.target.path)}"


def _shown(folder: Path, recipe: Path | None) -> Path:
    """A folder as the next command names it: a recipe's own paths begin at its file, so it needs the whole."""
    return folder.resolve() if recipe else folder


def _next(
    file: Path | None, described: Recipe, defense: str, changes: Sequence[str] | None, own: Mapping[str, object]
) -> str:
    """The next command: a chat with what was described, under a defense with settings of its own."""
    words = ["  anchorlm chat", _model(file, described)]
    if file is None or described.defense.get("name") != defense:
        words.append(f"--defense {defense}")
    settings = [*(changes or []), *(f"{name}={value}" for name, value in own.items())]
    return " ".join([*words, *(f"--set {quote(one)}" for one in settings)])


def _prompts(source: str, column: str | None) -> list[Messages | str]:
    """Every prompt of a file.

    Raises:
        UserError: It cannot be read, or a row is malformed.
    """
    rows = read_rows(source, column)
    for row in rows:
        if isinstance(row, BadRow):
            raise UserError(f"Line {row.line} of {source} holds no prompt: {row.why}; fix it.")
    return [row.prompt for row in rows if not isinstance(row, BadRow)]


def _both(harmful: str, harmless: str, column: str | None) -> tuple[list[Messages | str], list[Messages | str]]:
    """The prompts of two files, one of each class.

    Raises:
        UserError: A file cannot be read, has too few prompts, or shares one with the other.
    """
    from anchorlm.steering import classes

    found = _prompts(harmful, column), _prompts(harmless, column)
    classes(*found)
    return found


def _sets(
    command: Literal["fit", "calibrate"],
    look_alikes: str | None,
    tasks: str | None,
    column: str | None,
    *,
    shipped: bool,
) -> PromptSets:
    """The sets of prompts next to those that are given."""
    from anchorlm.steering import Part, PromptSets, shipped_prompts

    parts: tuple[Part, ...] = ("train", "fit") if command == "fit" else ("calibrate",)
    own = shipped_prompts(*parts) if shipped else PromptSets()
    return own.with_prompts(
        look_alikes=_prompts(look_alikes, column) if look_alikes else (),
        tasks=_prompts(tasks, column) if tasks else (),
    )
