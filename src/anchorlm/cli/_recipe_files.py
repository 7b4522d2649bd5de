from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import typer

from anchorlm.records import UserError


def run(name: str | None) -> None:
    """Prints a recipe, or without a name all of them with what each is for.

    Raises:
        UserError: There is none of this name.
    """
    found = {file.stem: file for file in sorted(_folder().glob("*.toml"))}
    if name is None:
        width = max(map(len, found), default=0)
        for each, file in found.items():
            typer.echo(f"{each:{width}}  {_title(file)}")
        return
    chosen = found.get(Path(name).name.removesuffix(".toml"))
    if chosen is None:
        raise UserError(f"There is no recipe {name!r}; choose one of {', '.join(found)}.")
    typer.echo(chosen.read_text("utf-8"), nl=False)


def _folder() -> Path:
    """The recipes of the installed package. Of a checkout those at its root."""
    package = Path(str(files("anchorlm")))
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def _title(file: Path) -> str:
    """The first sentence of a recipe, as far as its first line."""
    first = file.read_text("utf-8").partition("\n")[0]
    return first.lstrip("# ").partition(". ")[0].rstrip(".:")
