"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path | None, typer.Option("--recipe", "-r", help="TOML file that describes the guard.")]
Target = Annotated[str | None, typer.Option("--target", help="Model to guard: Hub id or folder.")]
Defense = Annotated[str | None, typer.Option("--defense", help="Name of the defense. By default alignbeam.")]
Anchor = Annotated[str | None, typer.Option("--anchor", help="Aligned model that guides: Hub id or folder.")]
Judge = Annotated[
    str | None,
    typer.Option("--judge", help="Model that grades by the rubric. refusal: the refusal matcher."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="A value of the recipe, such as defense.alpha=0.7. You can repeat it.", metavar="A.B=C"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TryFirst = Annotated[
    bool | None,
    typer.Option("--probe/--no-probe", help="Try the guard first, and stop if it fails. On by default."),
]
Ray = Annotated[bool, typer.Option("--ray", help="Share the prompts over a Ray cluster.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only this many rows, from the first on.")]
