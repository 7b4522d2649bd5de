from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anchorlm.cli._errors import OneSentence
from anchorlm.cli._fit import AllowCode
from anchorlm.cli._fit_alignbeam import fit
from anchorlm.cli._fit_inferenceguard import calibrate
from anchorlm.cli._options import Anchor, AsJson, Changes, Defense, Judge, Limit, Ray, RecipeFile, Target, TryFirst
from anchorlm.cli._zoo_app import zoo
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.guard import Recipe

# The heavy imports (torch, transformers) happen inside the commands, so help and completion answer at once.

app = typer.Typer(
    cls=OneSentence,
    name="anchorlm",
    help="Makes fine-tuned language models safe at inference time, without touching a weight.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo, name="zoo")
app.add_typer(fit, name="fit")
app.add_typer(calibrate, name="calibrate")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("anchorlm"))
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Makes fine-tuned language models safe at inference time, without touching a weight."""


@app.command()
def generate(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSONL, CSV, JSON list or lines of text, also as .gz. - is stdin.")
    ],
    recipe: RecipeFile = None,
    target: Target = None,
    defense: Defense = None,
    anchor: Anchor = None,
    judge: Judge = None,
    changes: Changes = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="JSONL file. If it exists, it is continued. - is stdout.")
    ] = "-",
    column: Annotated[str | None, typer.Option("--column", help="Column or field that holds the prompt.")] = None,
    limit: Limit = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that are malformed or too long.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the output again.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Write into each row what the defense decided.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="How many rows are answered at once.")] = 64,
    ray: Ray = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="With --ray: how many processes answer. By default one for each GPU, or machine."
        ),
    ] = None,
    probe: TryFirst = None,
    allow_code: AllowCode = False,
) -> None:
    """Answers every prompt of a file under guard. Run it again after a stop, and it goes on where it was."""
    from anchorlm.cli._generate import run

    run(
        _recipe(recipe, target, defense, anchor, judge, changes),
        source,
        output,
        column=column,
        limit=limit,
        skip_bad=skip_bad,
        overwrite=overwrite,
        trace=trace,
        concurrency=concurrency,
        ray=ray,
        workers=workers,
        probe=probe,
    )


@app.command()
def grade(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, TSV, JSON list, JSONL (also as .gz) or Parquet with answers.")
    ],
    text: Annotated[str, typer.Option("--text", help="Column or field that holds the answer.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="JSONL file. If it exists, it is continued. - is stdout.")
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Column or field that holds the prompt.")] = None,
    grader: Annotated[
        str,
        typer.Option("--grader", help="english: does it refuse? harm: does it give harm? refusal: known phrases only."),
    ] = "english",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the output again.")] = False,
) -> None:
    """Grades answers that you already have. Each row gets an outcome and a probability."""
    from anchorlm.cli._grade import run

    run(source, text, prompt, grader, output, overwrite=overwrite)


@app.command()
def chat(
    recipe: RecipeFile = None,
    target: Target = None,
    defense: Defense = None,
    anchor: Anchor = None,
    judge: Judge = None,
    changes: Changes = None,
    probe: TryFirst = None,
    allow_code: AllowCode = False,
) -> None:
    """Lets you talk with a guarded model. /help lists the commands."""
    from anchorlm.cli._chat import run

    run(_recipe(recipe, target, defense, anchor, judge, changes), probe=probe)


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file that describes the guard.")],
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Tells you whether a recipe works on its models, and names every gap. It loads no weights."""
    from anchorlm.cli._check import run

    run(recipe, changes or [], as_json=as_json)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="GGUF file or PEFT adapter.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write. It must not exist yet.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Format of the weights: bfloat16 or float32.")] = "bfloat16",
    adapter: Annotated[str | None, typer.Option("--adapter", help="PEFT adapter to put on top.")] = None,
) -> None:
    """Writes a GGUF file, or a model with its adapter, as an ordinary model folder."""
    from anchorlm.cli._convert import run

    run(source, folder, dtype, adapter)


@app.command()
def recipe(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of a recipe. Without one, all are listed.")
    ] = None,
) -> None:
    """Prints a recipe to start from, as in: anchorlm recipe finance-llama3 > guard.toml."""
    from anchorlm.cli._recipe_files import run

    run(name)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Looks at this machine: versions, device, memory, caches, embedded models, and a tiny run."""
    from anchorlm.cli._doctor import run

    run(as_json)


@app.command()
def demo(
    full: Annotated[
        bool, typer.Option("--full", help="400 prompts of each sealed split, instead of a sample.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Prompts per split.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample.")] = 0,
    defenses: Annotated[
        str | None, typer.Option("--defenses", help="Only these, such as undefended,alignbeam.")
    ] = None,
    real: Annotated[
        bool, typer.Option("--real", help="Ask the real specialist ten prompts, and show both answers.")
    ] = False,
) -> None:
    """Shows what every defense does for the embedded specialists, or what a guard does for a real one."""
    if real:
        if full or seed or defenses:
            raise UserError("--real shows ten prompts, undefended and guarded: with it go --limit and --json alone.")
        from anchorlm.cli._demo_real import run as run_real

        run_real(json_path=json, limit=limit)
        return
    from anchorlm.cli._demo import run

    run(full=full, json_path=json, limit=limit, seed=seed, defenses=defenses)


@app.command()
def compare(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="TOML file. Without one, the embedded specialists are compared."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. A run that was stopped goes on.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of a finished run: write its tables and report again. No model is loaded."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only this many prompts of every set, from the first on.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of prompts, attacks and sampling.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="Values of a knob, such as alpha=0:1:0.1.", metavar="KNOB=A:B:STEP"),
    ] = None,
    defenses: Annotated[
        str | None, typer.Option("--defenses", help="Only these, such as undefended,alignbeam.")
    ] = None,
    targets: Annotated[str | None, typer.Option("--targets", help="Only these, such as a-medicine,a-finance.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Only these sets, such as harmful-plain,harmless.")] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attacks", help="Attacks on harmful prompts, such as none,role_play. all: every one that needs no file."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="How many processes answer, each with its own models: 1, or with --ray one for each GPU or machine.",
        ),
    ] = None,
    ray: Ray = False,
    probe: Annotated[
        bool | None,
        typer.Option("--probe/--no-probe", help="Try every guard first, and report what fails. On by default."),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Compares defenses on safety, over-refusal, usefulness and cost. Run it again after a stop, and it goes on."""
    from anchorlm.cli._compare import run

    run(
        recipe,
        out,
        source=source,
        limit=limit,
        seed=seed,
        sweep=sweep or [],
        only={"defenses": defenses, "targets": targets, "data": data},
        attacks=attacks,
        workers=workers,
        ray=ray,
        probe=probe,
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run of anchorlm compare.")],
    kind: Annotated[str, typer.Option("--format", help="md, latex or html.")] = "html",
) -> None:
    """Prints a run's tables as Markdown or LaTeX, or writes its report as one HTML file."""
    from anchorlm.cli._compare import report

    report(folder, kind)


@app.command()
def serve(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE]...", help="TOML files, one for each guard. Without any, an embedded specialist is served."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of the server's settings.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on. By default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on. By default 8000.")] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="File of API keys. Without it, everyone may ask.")] = None,
    audit: Annotated[Path | None, typer.Option("--audit", help="JSONL file that every request is written to.")] = None,
    probe: TryFirst = None,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="Show clients no figures of the defense.")] = False,
    key: Annotated[
        str | None, typer.Option("--new-key", help="Add an API key with this name to --keys, and end.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="With --new-key: the key also sees traces and metrics.")
    ] = False,
    real: Annotated[bool, typer.Option("--real", help="Serve a real specialist under the composed guard.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Serves guarded models through OpenAI's API, with a page to try them."""
    if key is not None:
        from anchorlm.cli._serve import add_key

        add_key(keys, key, operator)
        return
    options = {"host": host, "port": port, "keys": keys, "audit": audit, "probe": probe}
    changes = {name: value for name, value in options.items() if value is not None}
    if no_scores:
        changes["scores"] = False
    from anchorlm.cli._bind import bound

    with bound(config, changes) as sockets:
        from anchorlm.cli._serve import run

        run(recipes or [], config, changes, sockets, real=real)


def _recipe(
    recipe: Path | None,
    target: str | None,
    defense: str | None,
    anchor: str | None,
    judge: str | None,
    changes: list[str] | None,
) -> Recipe:
    from anchorlm.cli._recipes import make_recipe

    return make_recipe(recipe, target=target, defense=defense, anchor=anchor, judge=judge, changes=changes or [])
