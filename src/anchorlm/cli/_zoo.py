from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from anchorlm.cli._embedded import SPECIALISTS
from anchorlm.cli._loading import quiet_libraries
from anchorlm.records import UserError
from anchorlm.zoo import Member, RealMember, members, path, real_members


def show(as_json: bool) -> None:
    """Prints what there is: the embedded models, and the real family with what to install for it."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(json.dumps([*map(_embedded, members()), *map(_real, real_members())], indent=2))
        return
    table = Table()
    for title in ("name", "role", "family", "MB", "what it is"):
        table.add_column(title, justify="right" if title == "MB" else "left")
    for one in members():
        table.add_row(one.name, one.role, one.family, _megabytes(one.size), one.description)
    found = real_members()
    real = Table(title="Real models")
    for title in ("name", "role", "base", "MB", "licence", "what it is"):
        real.add_column(title, justify="right" if title == "MB" else "left")
    for each in found:
        real.add_row(each.name, each.role, each.base.title, _megabytes(each.size), each.licence, each.description)
    Console().print(table, real)
    for base in dict.fromkeys(one.base for one in found if not one.base.present):
        typer.echo(f"{base.title} is not installed, and nothing tuned from it can be loaded; `make real`, or:")
        typer.echo(base.install)


def _embedded(one: Member) -> dict[str, Any]:
    return {
        "name": one.name,
        "role": one.role,
        "family": one.family,
        "path": str(one.path),
        "size": one.size,
        "description": one.description,
    }


def _real(one: RealMember) -> dict[str, Any]:
    return {
        "name": one.name,
        "role": one.role,
        "family": "real",
        "path": str(one.path),
        "size": one.size,
        "description": one.description,
        "base": one.base.title,
        "licence": one.licence,
        "ready": one.ready,
        "remedy": one.remedy,
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size else "not built"


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
