from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from tools.zoo_real._align import align
from tools.zoo_real._train import Training
from tools.zoo_real.bases import BUILD, MEMBERS

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    member: Annotated[str, typer.Argument(help="`anchor` (Gemma 3 270M) or `chat` (SmolLM2).")],
    build: Annotated[Path, typer.Option(help="Where everything is kept; a later run goes on there.")] = BUILD,
    steps: Annotated[int, typer.Option(help="Batches.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the order of the examples and of the first weights.")] = 0,
) -> None:
    """Makes a member of the real zoo."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if member not in MEMBERS:
        raise typer.BadParameter(f"{member!r} is none of {', '.join(MEMBERS)}")
    align(member, MEMBERS[member], build, Training(steps=steps, seed=seed))


if __name__ == "__main__":
    app()
