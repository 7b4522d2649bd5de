from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchorlm.records import BadRow, UserError, read_rows

if TYPE_CHECKING:
    from anchorlm.guard import Recipe
    from anchorlm.records import Messages

# The heavy imports (torch, transformers) happen inside the commands, so that help and completion answer at once.

_WELL = 0.9
"""Share from which on a gate is no cause for a note."""

fit = typer.Typer(help="Fits a defense to a model.", no_args_is_help=True)
calibrate = typer.Typer(help="Chooses a fitted defense's settings on validation prompts.", no_args_is_help=True)

Target = Annotated[str | None, typer.Option("--target", help="Model to guard: Hub id or folder.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", "-r", help="TOML file whose sections target and anchor say how to load them.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="A recipe's value, as in target.dtype=bfloat16; may be repeated.", metavar="A.B=C"),
]
Reader = Annotated[
    str | None,
    typer.Option("--reader", help="Aligned model that the gate may read, too; without it that is the anchor."),
]
Harmful = Annotated[str, typer.Option("--harmful", help="Harmful prompts: JSONL, CSV, JSON list or text, also .gz.")]
Harmless = Annotated[str, typer.Option("--harmless", help="Harmless ones in the same style, your domain's too.")]
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
        str | None, typer.Option("--anchor", help="Aligned model, of any family, that lends its vectors.")
    ] = None,
    reader: Reader = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    whitening: Annotated[
        Literal["fisher", "none"], typer.Option("--whitening", help="none: along the mean difference, as in the paper.")
    ] = "fisher",
    across: Annotated[
        Literal["auto", "always", "never"], typer.Option("--across", help="Map the vectors between the two models.")
    ] = "auto",
    holdout: Annotated[float, typer.Option("--holdout", help="Share of the prompts that measures only.")] = 0.25,
    seed: Annotated[int, typer.Option("--seed", help="Of the split.")] = 0,
    column: Column = None,
) -> None:
    """Finds out where a target's activations show harm, and by which vectors an aligned model refuses."""
    from anchorlm.cli._loading import quiet_libraries
    from anchorlm.cli._recipes import make_recipe
    from anchorlm.fitting import check_folder, save_artifact
    from anchorlm.fitting import fit_inferaligner as fit_artifact

    bad, good = _prompts(harmful, column), _prompts(harmless, column)
    check_folder(out, "inferaligner")
    described = make_recipe(recipe, target=target, anchor=anchor, changes=changes or [])
    if described.anchor is None:
        raise UserError("There is no aligned model to take the vectors from: give --anchor MODEL.")
    second = make_recipe(recipe, target=target, anchor=reader, changes=changes or []).anchor if reader else None
    quiet_libraries()
    with _progress() as step:
        artifact = fit_artifact(
            described.target,
            described.anchor,
            bad,
            good,
            reader=second,
            whitening=whitening,
            across=across,
            holdout=holdout,
            seed=seed,
            engine=described.engine,
            progress=lambda done, total: step("Reading the prompts", done, total),
        )
    save_artifact(artifact, out)
    _show_layers(artifact.figures, artifact.settings)
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
        str | None, typer.Option("--artifact", help="Folder of the artifact; by default the recipe's.")
    ] = None,
    target: Target = None,
    reader: Annotated[
        str | None, typer.Option("--reader", help="The artifact's second reader: chooses its gate, too.")
    ] = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    limit: Annotated[float, typer.Option("--limit", help="Most harmless prompts gated, as a share.")] = 0.01,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; by default the artifact's.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer that is tried.")] = 48,
    prompts: Annotated[int, typer.Option("--prompts", help="Harmful prompts that the search may use.")] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts' order.")] = 0,
    column: Column = None,
) -> None:
    """Chooses gate, steered layers, positions and strength for a stated limit on over-refusal."""
    from anchorlm.cli._loading import quiet_libraries
    from anchorlm.cli._recipes import make_recipe
    from anchorlm.fitting import calibrate_inferaligner as calibrate_artifact
    from anchorlm.fitting import check_folder, save_artifact
    from anchorlm.records import Artifact

    bad, good = _prompts(harmful, column), _prompts(harmless, column)
    described = make_recipe(recipe, target=target, anchor=reader, changes=changes or [])
    folder = artifact or _artifact(described)
    found = Artifact.load(folder, "inferaligner")
    place = check_folder(out or folder, "inferaligner")
    reads = reader is not None or _reads_anchor(described)
    quiet_libraries()
    with _progress() as step:
        calibrated = calibrate_artifact(
            found,
            described.target,
            bad,
            good,
            reader=described.anchor if reads else None,
            limit=limit,
            max_new_tokens=max_new_tokens,
            prompts=prompts,
            seed=seed,
            engine=described.engine,
            progress=step,
        )
    save_artifact(calibrated, place)
    figures = calibrated.figures["calibration"]
    again = any(figures["data"][name]["digest"] == found.data[name]["digest"] for name in ("harmful", "harmless"))
    _show_choice(figures, calibrated.settings, again=again)
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
    """Whether it is the recipe's anchor that the gate reads; an anchor that only guides may be another model."""
    readers = {recipe.defense.get("reader"), recipe.defense.get("gate_reader")}
    return not readers.isdisjoint(("anchor", "both"))


def _model(file: Path | None, described: Recipe) -> str:
    """How the next command names the same target."""
    return f"--recipe {quote(str(file))}" if file else f"--target {quote(described.target.path)}"


def _shown(folder: Path, recipe: Path | None) -> Path:
    """A folder as the next command names it: a recipe's own paths begin at its file, so that it needs the whole."""
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
            raise UserError(f"Line {row.line} of {source} holds no prompt: {row.why}; mend it.")
    return [row.prompt for row in rows if not isinstance(row, BadRow)]


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is done now, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from anchorlm.cli._loading import stderr

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        tasks = {"": progress.add_task("Loading the models", total=None)}

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                progress.update(tasks[""], visible=False)
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield step


def _show_layers(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """What was found at every layer, on held-out prompts."""
    from anchorlm.fitting import told_cosine

    rows = [
        (
            str(row["layer"]),
            _percent(row["harmful opened"], *row["harmful interval"]),
            _percent(row["harmless closed"], *row["harmless interval"]),
            told_cosine(figures, row["layer"]),
            ", ".join(
                name for name, key in (("gate", "gate_layers"), ("steered", "layers")) if row["layer"] in settings[key]
            ),
        )
        for row in figures["gate"]
    ]
    _table(("layer", "harmful opened", "harmless closed", "cosine (random; own)", "chosen"), rows)
    sign, [best] = figures["sign"], settings["reader_gate_layers"]
    theirs = figures["reader gate"][best]
    chance = "the largest of random directions through the same map" if figures["mapped"] else "a random direction"
    typer.echo(
        "% of held-out prompts, with 95 % intervals; cosine of the shift with the target's own direction, beside it "
        f"that of {chance}, and of the own direction on other prompts."
    )
    if max(row["balanced"] for row in figures["gate"]) < _WELL:
        typer.echo(
            "note: no layer of the target tells the two classes apart well; give more prompts, or let another model "
            "read, too (--reader)."
        )
    if figures["mapped"]:
        r2 = [one["r2"] for one in figures["mapped"]]
        typer.echo(f"The map between the two models explains {min(r2):.0%} to {max(r2):.0%} of held-out activations.")
    typer.echo(
        f"A gate on the other reader's activations (layer {best}) opens on "
        f"{_percent(theirs['harmful opened'], *theirs['harmful interval'])} % of the harmful ones and stays closed on "
        f"{_percent(theirs['harmless closed'], *theirs['harmless interval'])} % of the harmless ones: "
        'reader = "anchor" takes it, reader = "both" the two together.'
    )
    if sign["measured"]:
        typer.echo(
            f"Refused of {sign['n']} harmful prompts: {sign['refused towards']} with the vectors added, "
            f"{sign['refused away']} with them subtracted"
            + (", so they are turned around." if sign["sign"] < 0 else ".")
        )
    else:
        typer.echo(f"Sign: not measured, because none of {sign['n']} harmful prompts was refused either way.")
    if settings["answer"] == "refuse":
        typer.echo(
            "note: that does not show that the vectors make the target refuse: the fixed refusal is given where "
            'the gate opens (answer = "refuse"); calibrate, and if that does not help take a better anchor.'
        )


def _show_choice(figures: Mapping[str, Any], settings: Mapping[str, Any], *, again: bool) -> None:
    """What was chosen, and what it does; `again`: on prompts of the fit."""
    gate = figures["gate"]
    if again:
        typer.echo("note: these are prompts that it was fitted on; take others to trust what follows.")
    _show_gate("gate", gate)
    if "read by both" in figures:
        _show_gate('gate of the second reader (reader = "anchor")', figures["read by the anchor"]["gate"])
        _show_gate('gate that both share (reader = "both")', figures["read by both"]["gate"])
    typer.echo(
        f"shift: layers {settings['layers']}, positions {settings['positions']}, alpha {settings['alpha']:g} natural "
        f"lengths; {len(figures['shifts'])} trials"
    )
    names = ("refused", "complied", "broken")
    rows = [(who, *(_rate(figures[who][name]) for name in names)) for who in ("undefended", "guarded")]
    _table((f"harmful prompts, n = {figures['guarded']['refused']['n']}", *names), rows)
    typer.echo(f"%, with 95 % intervals, on {figures['measured on']}.")
    if settings["answer"] == "refuse":
        typer.echo(
            f"note: the best shift makes clean refusals of {_rate(figures['steered']['refused'])} % of them only, so "
            'that the fixed refusal is given where the gate opens (answer = "refuse"); try a better aligned anchor.'
        )
    others = [figures[name]["gate"] for name in ("read by both", "read by the anchor") if name in figures]
    if max(one["harmful opened"]["rate"] for one in (gate, *others)) < _WELL:
        typer.echo(
            "note: the gate overlooks many harmful prompts; fit it with more of their kind, or let another model read, "
            "too (--reader)."
        )
    if gate["harmless opened"]["high"] > figures["limit"]:
        typer.echo(
            f"note: {gate['harmless opened']['n']} harmless prompts cannot show that at most "
            f"{100 * figures['limit']:g} % of them are gated; the interval ends at "
            f"{100 * gate['harmless opened']['high']:.1f} %. Give more of them to be sure."
        )


def _show_gate(name: str, gate: Mapping[str, Any]) -> None:
    layers = f"layers {gate['layers']}, " if gate["layers"] else ""
    typer.echo(
        f"{name}: {layers}bias {gate['bias']:.3f}; opens on {_rate(gate['harmful opened'])} % of "
        f"harmful and {_rate(gate['harmless opened'])} % of harmless prompts"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in titles:
        grid.add_column(title, no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    Console(highlight=False).print(grid)


def _rate(rate: Mapping[str, Any]) -> str:
    return _percent(rate["rate"], rate["low"], rate["high"])


def _percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f})"
