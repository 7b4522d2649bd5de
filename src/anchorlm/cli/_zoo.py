from __future__ import annotations

import json
from typing import Any

import typer

from anchorlm.zoo import Member, RealMember, members, real_members


def show(as_json: bool) -> None:
    """Prints what there is: the embedded models, and the real family with what to install for it."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(json.dumps([*map(_embedded, members()), *map(_real, real_members())], indent=2))
        return
    table = Table()
    for title in ("name", "role", "family", "MB", "what it is"):
        table.add_column(title, justify="right" if title == "MB" else "left", no_wrap=title == "name")
    for one in members():
        table.add_row(one.name, one.role, one.family, _megabytes(one.size), one.description)
    found = real_members()
    real = Table(title="Real models")
    for title in ("name", "role", "base", "MB", "licence", "what it is"):
        real.add_column(title, justify="right" if title == "MB" else "left", no_wrap=title == "name")
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
