from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from anchorlm.cli._embedded import SPECIALISTS
from anchorlm.cli._loading import quiet_libraries
from anchorlm.records import UserError
from anchorlm.zoo import members, path


def show(as_json: bool) -> None:
    """Prints what there is."""
    found = members()
    if as_json:
        rows = [
            {"name": one.name, "role": one.role, "family": one.family, "path": str(one.path), "size": one.size}
            | {"description": one.description}
            for one in found
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table()
    for title in ("name", "role", "family", "MB", "what it is"):
        table.add_column(title, justify="right" if title == "MB" else "left")
    for one in found:
        table.add_row(
            one.name, one.role, one.family, f"{one.size / 1e6:.1f}" if one.size else "not built", one.description
        )
    Console().print(table)


def fit(names: Sequence[str]) -> None:
    """Fits InferAligner to some of the specialists, or to all; each is finished before the next begins.

    Raises:
        UserError: One of them is no embedded specialist.
    """
    if wrong := [name for name in names if name not in SPECIALISTS]:
        raise UserError(f"{wrong[0]!r} is no embedded specialist; take some of: {', '.join(SPECIALISTS)}.")
    from anchorlm.cli._zoo_fit import fit_embedded

    quiet_libraries()
    for name in names or SPECIALISTS:
        place = fit_embedded(path(name).parent, name, SPECIALISTS[name])
        typer.echo(f"Written to {place}.")


def build(out: Path, seed: int, scale: float) -> None:
    """Trains all of them, with progress bars; a build that was stopped goes on."""
    from anchorlm.zoo import build as build_members

    quiet_libraries()
    build_members(out, seed, scale)
    if scale >= 1:  # what was hardly trained knows no harm
        from anchorlm.cli._zoo_fit import fit_embedded

        for name, domain in SPECIALISTS.items():
            fit_embedded(out, name, domain)
    typer.echo(f"The models are in {out}.")
