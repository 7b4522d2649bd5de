from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from anchorlm.cli._errors import complain
from anchorlm.cli._loading import busy, quiet_libraries
from anchorlm.cli._recipes import parse_changes
from anchorlm.guard import Recipe, examine


def run(file: Path, changes: Sequence[str]) -> None:
    """Prints what was found.

    Raises:
        UserError: The file is no recipe.
        Exit: With 2 if there is a gap.
    """
    recipe = Recipe.load(file, parse_changes(changes))
    with busy("Looking at the models"):
        findings = examine(recipe, quiet_libraries)
    for fact in findings.facts:
        typer.echo(fact)
    for note in findings.notes:
        typer.echo(f"note: {note}")
    for gap in findings.gaps:
        complain(gap)
    if findings.gaps:
        raise typer.Exit(2)
    typer.echo(f"{file} works on these models.")
