from __future__ import annotations

from typing import Annotated

import typer

from anchorlm.cli._options import AsJson

zoo = typer.Typer(help="The embedded tiny models.", no_args_is_help=True)


@zoo.command("list")
def zoo_list(as_json: AsJson = False) -> None:
    """Lists the embedded models, and the real ones with what you install for them."""
    from anchorlm.cli._zoo import show

    show(as_json)


@zoo.command("path")
def zoo_path(name: Annotated[str, typer.Argument(help="Name of a model, such as a-finance.")]) -> None:
    """Prints the folder of a model."""
    from anchorlm.zoo import path

    typer.echo(path(name))


@zoo.command("recipe")
def zoo_recipe(
    name: Annotated[str, typer.Argument(help="Name of a specialist, such as a-finance or real-finance.")],
    defense: Annotated[str, typer.Option("--defense", help="Name of the defense.")] = "alignbeam",
) -> None:
    """Prints a recipe that guards a model that comes with the library."""
    if name.startswith("real-"):
        from anchorlm.cli._real import recipe
    else:
        from anchorlm.cli._embedded import recipe

    typer.echo(recipe(name, defense), nl=False)
