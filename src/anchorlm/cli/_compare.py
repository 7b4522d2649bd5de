from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from anchorlm.cli._errors import complain
from anchorlm.cli._loading import quiet_libraries
from anchorlm.evaluation import CompareRecipe, Part, parse_sweep
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.evaluation import Progress as Told


def run(
    recipe: Path | None,
    out: Path | None,
    *,
    source: Path | None,
    limit: int | None,
    seed: int | None,
    sweep: Sequence[str],
    only: Mapping[Part, str | None],
    attacks: str | None,
    workers: int | None,
    ray: bool = False,
    probe: bool | None = None,
) -> None:
    """Runs a comparison, or takes one that was run, and writes its tables and its report.

    Raises:
        UserError: Nowhere to write, no Ray, or what `CompareRecipe.load` and `compare` raise.
    """
    if source is not None:
        if recipe is not None or out is not None:
            raise UserError("--from takes a run as it is: leave out the recipe and --out.")
        _tell(source)
        return
    if ray:
        from anchorlm.ray import crew
    if out is None:
        raise UserError("A run needs a place of its own: give --out DIR, or --from DIR for one that was run.")
    changes = {
        "limit": limit,
        "seed": seed,
        "sweep": parse_sweep(sweep) or None,
        "attacks": None if attacks is None else [one.strip() for one in attacks.split(",")],
    }
    if recipe is None:
        from anchorlm.cli._compare_embedded import embedded_recipe

        given = {name: value for name, value in changes.items() if value is not None}
        chosen = CompareRecipe.parse(embedded_recipe() | given, where="the command line")
    else:
        chosen = CompareRecipe.load(recipe, **changes)
    for part, names in only.items():
        chosen = chosen.only(part, names.split(",")) if names else chosen
    if probe is not None:
        chosen = chosen.replace({"probe": {**chosen.probe.model_dump(), "run": probe}}, where="the command line")
    from anchorlm.cli._compare_embedded import embedded
    from anchorlm.evaluation import compare

    quiet_libraries()
    with _progress() as told:
        who = {"crew": crew(workers)} if ray else {"workers": workers or 1}
        compare(chosen, out, embedded=embedded(), progress=told, **who)
    _tell(out)


def report(folder: Path, kind: str) -> None:
    """Prints or writes the tables of a run in one form.

    Raises:
        UserError: No run, or no such form.
    """
    if kind == "html":
        from anchorlm.evaluation import write_report

        typer.echo(write_report(folder))
        return
    from anchorlm.evaluation import figures, latex, markdown

    forms = {"md": markdown, "latex": latex}
    if kind not in forms:
        raise UserError(f"There is no format {kind!r}: take md, latex or html.")
    typer.echo(forms[kind](figures(folder)), nl=False)


def _tell(folder: Path) -> None:
    from anchorlm.evaluation import figures, markdown, summary, write_costs, write_report, write_tables

    found = figures(folder)
    for file in write_tables(folder, found):
        complain(f"Wrote {file}.")
    complain(f"Wrote {write_costs(folder)}.")
    complain(f"Wrote {write_report(folder)}.")
    typer.echo(markdown(found), nl=False)
    typer.echo(f"\n{summary(found)}")


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar with rate and time left on a terminal. A line for each defense elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from anchorlm.cli._bars import Rate, stderr

    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        task, last = progress.add_task("", total=None), ""

        def told(done: int, total: int, what: str) -> None:
            nonlocal last
            if what != last and not stderr.is_terminal:
                complain(f"{done} of {total} answers: {what}")
            last = what
            progress.update(task, completed=done, total=total, description=what)

        yield told
