"""Makes the embedded models again, and what is fitted to them: `python -m tools.zoo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchorlm.cli._embedded import DOMAIN_OF
from anchorlm.cli._loading import quiet_libraries
from anchorlm.zoo import path
from tools.zoo._build import build as build_members
from tools.zoo._fit import fit_embedded

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the models; a build that was stopped goes on.")] = Path(
        "build/zoo"
    ),
    seed: Annotated[int, typer.Option(help="Of data and training.")] = 0,
    scale: Annotated[float, typer.Option(min=0.0, help="Share of the training steps.")] = 1.0,
) -> None:
    """Trains the embedded models, and fits InferAligner to the specialists."""
    quiet_libraries()
    build_members(out, seed, scale)
    if scale >= 1:  # what was hardly trained knows no harm
        for name, domain in DOMAIN_OF.items():
            fit_embedded(out, name, domain)
    typer.echo(f"The models are in {out}.")


@app.command()
def fit(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Specialists, such as a-finance; none: all.")
    ] = None,
) -> None:
    """Fits InferAligner to the shipped specialists, and puts each artifact next to its weights."""
    if wrong := [name for name in names or () if name not in DOMAIN_OF]:
        raise typer.BadParameter(f"{wrong[0]!r} is no embedded specialist; take some of: {', '.join(DOMAIN_OF)}.")
    quiet_libraries()
    for name in names or DOMAIN_OF:  # each is finished before the next begins
        typer.echo(f"Written to {fit_embedded(path(name).parent, name, DOMAIN_OF[name])}.")


if __name__ == "__main__":
    app()
