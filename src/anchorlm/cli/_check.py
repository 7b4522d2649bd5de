from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import typer

from anchorlm.cli._errors import complain
from anchorlm.cli._loading import busy, quiet_libraries
from anchorlm.cli._recipes import parse_changes
from anchorlm.guard import Recipe, examine


def run(file: Path, changes: Sequence[str], *, as_json: bool = False) -> None:
    """Prints what was found.

    Args:
        file: The recipe.
        changes: What is put over it.
        as_json: For machines.

    Raises:
        UserError: The file is no recipe.
        Exit: With 2 if there is a gap.
    """
    recipe = Recipe.load(file, parse_changes(changes))
    with busy("Looking at the models"):
        findings = examine(recipe, quiet_libraries)
    if as_json:
        found = asdict(replace(findings, engines=[]))
        del found["engines"]
        found["template"] = found.pop("thoughts")
        typer.echo(json.dumps({"works": not findings.gaps, **found}, indent=2))
        if findings.gaps:
            raise typer.Exit(2)
        return
    for fact in findings.facts:
        typer.echo(fact)
    for note in findings.notes:
        typer.echo(f"note: {note}")
    for gap in findings.gaps:
        complain(gap)
    if findings.gaps:
        raise typer.Exit(2)
    typer.echo(f"{file} works on these models.")
