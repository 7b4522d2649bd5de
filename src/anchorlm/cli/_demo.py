from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import typer

from anchorlm.cli._demo_figures import Cell, table
from anchorlm.cli._embedded import ANCHOR, COST, JUDGE, OWN_FAMILY, REWARD, SAME_VOCABULARY, SPECIALISTS, knobs_of
from anchorlm.cli._loading import quiet_libraries
from anchorlm.defenses import find_defense
from anchorlm.guard import Guard
from anchorlm.judging import Scorer
from anchorlm.models import ModelSettings
from anchorlm.records import AnchorLMError, UserError, as_messages
from anchorlm.zoo import JUDGE_TEMPLATE, SPLITS, Item, Outcome, grade, is_correct, items, path

if TYPE_CHECKING:
    from rich.progress import Progress

    from anchorlm.engine import LocalEngine

DEFENSES = (
    "undefended", "self_reminder", "goal_priority", "safe_decoding", "best_of_n", "inferaligner", "alignbeam",
    "inferenceguard",
)  # fmt: skip
"""In the order of the table."""

SAMPLE = 24
"""Prompts of each split by default: the demo ends within two minutes on two cores."""

FEWER = {"best_of_n": 6}
"""Likewise, for a defense that writes many answers for one."""

FULL = 400
"""Prompts of each split under --full."""

LONGEST = 64
"""Tokens of an answer: the embedded models need at most 45."""

NEXT = """
Go on:
  anchorlm zoo recipe a-finance > my.toml       a recipe for one of these models
  anchorlm chat --recipe my.toml                talk with it; /set alpha=0.7, /trace
  anchorlm check my.toml                        what a recipe needs, before any weight is loaded
  anchorlm generate prompts.jsonl --recipe my.toml -o answers.jsonl"""


def run(*, full: bool, json_path: Path | None, limit: int | None, seed: int, defenses: str | None) -> None:
    """Runs every cell, prints the table, and writes the figures if asked to.

    Raises:
        UserError: An unknown defense, no embedded models, or a file that cannot be written.
    """
    chosen = _chosen(defenses)
    if json_path is not None and not json_path.parent.is_dir():
        raise UserError(f"There is no folder {str(json_path.parent)!r}: make it, or choose another file for --json.")
    if json_path is not None and json_path.is_dir():
        raise UserError(f"{str(json_path)!r} is a folder: choose a file for --json.")
    if full and limit:
        raise UserError("--full and --limit say different things: give one of them.")
    quiet_libraries()
    n = limit or (FULL if full else SAMPLE)
    sizes = {name: n if limit or full else FEWER.get(name, n) for name in chosen}
    start = perf_counter()
    cells = measure(sizes, seed)
    typer.echo(table(cells, perf_counter() - start))
    typer.echo(NEXT)
    if json_path is not None:
        try:
            json_path.write_text(json.dumps([cell.row(cells) for cell in cells], indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{str(json_path)!r} cannot be written: {error.strerror or error}.") from None


def measure(sizes: Mapping[str, int], seed: int) -> list[Cell]:
    """One cell per specialist, split and defense, a split's defenses one after another so that their times compare.

    Args:
        sizes: How many prompts of each split a defense gets, by its name.
        seed: Of the prompts.
    """
    others = _Others()
    cells = []
    with _progress() as progress:
        task = progress.add_task("", total=len(SPECIALISTS) * len(SPLITS) * len(sizes))
        for target, domain in SPECIALISTS.items():
            guards = _guards(target, list(sizes), others)
            _warm_up(guards)
            for split in SPLITS:
                everything = _items(split, domain, max(sizes.values()), seed)
                for defense, guard in guards.items():
                    progress.update(task, description=f"{target} {defense} {split}")
                    sample = everything[: sizes[defense]]
                    texts, seconds = _answers(guard, sample)
                    cells.append(_cell(target, defense, split, sample, texts, seconds))
                    progress.advance(task)
    return cells


class _Others:
    """The models that all specialists share, loaded when they are first needed."""

    def __init__(self) -> None:
        self._engines: dict[str, LocalEngine] = {}
        self._scorers: dict[str, Scorer] = {}

    def engine(self, name: str) -> LocalEngine:
        if name not in self._engines:
            self._engines[name] = _engine(name)
        return self._engines[name]

    def scorer(self, name: str) -> Scorer:
        from anchorlm.judging import ClassifierScorer

        if name not in self._scorers:
            self._scorers[name] = ClassifierScorer.load(ModelSettings(path=str(path(name))))
        return self._scorers[name]


def _chosen(defenses: str | None) -> tuple[str, ...]:
    if defenses is None:
        return DEFENSES
    names = {name.strip() for name in defenses.split(",") if name.strip()}
    if not names:
        raise UserError(f"--defenses names none: choose among {', '.join(DEFENSES)}.")
    if unknown := sorted(names - set(DEFENSES)):
        raise UserError(f"The demo does not show {', '.join(unknown)}; it shows: {', '.join(DEFENSES)}.")
    return tuple(name for name in DEFENSES if name in names)


def _engine(name: str) -> LocalEngine:
    from anchorlm.engine import LocalEngine
    from anchorlm.models import CausalModel

    # Every defense answers the same prompts: nothing that one has read is another's to use, or times would not compare.
    return LocalEngine(CausalModel.from_pretrained(path(name)), prefix_tokens=0)


def _guards(target: str, defenses: Sequence[str], others: _Others) -> dict[str, Guard]:
    from anchorlm.judging import RubricJudge

    engine, guards = _engine(target), {}
    for name in defenses:
        needs = find_defense(name).needs
        guards[name] = Guard(
            engine,
            name,
            anchor=others.engine(SAME_VOCABULARY if name in OWN_FAMILY else ANCHOR) if needs.anchor else None,
            judge=RubricJudge(others.engine(JUDGE), template=JUDGE_TEMPLATE) if needs.judge else None,
            cost=others.scorer(COST) if needs.cost else None,
            reward=others.scorer(REWARD) if needs.reward else None,
            generation={"max_new_tokens": LONGEST},
            **knobs_of(target, name),
        )
    return guards


def _warm_up(guards: dict[str, Guard]) -> None:
    """The first forward of every shape allocates. That is not the defense's time."""
    for guard in guards.values():
        guard.chat("Hello", max_new_tokens=2)


def _items(split: str, domain: str, n: int, seed: int) -> list[Item]:
    own = domain if split in ("harmful-framed", "domain") else None
    return items(split, domain=own, partition="test", n=n, seed=seed)


def _answers(guard: Guard, sample: Sequence[Item]) -> tuple[list[str], float]:
    """The answers in order, and the seconds that all of them took together."""
    requests = [guard.request(as_messages(item.prompt)) for item in sample]
    texts = [""] * len(sample)
    start = perf_counter()
    for index, outcome in guard.map(requests, concurrency=len(requests)):
        if isinstance(outcome, AnchorLMError):
            raise outcome
        texts[index] = outcome.text
    return texts, perf_counter() - start


def _cell(target: str, defense: str, split: str, sample: Sequence[Item], texts: Sequence[str], seconds: float) -> Cell:
    outcomes = [grade(item, text) for item, text in zip(sample, texts, strict=True)]
    correct = sum(map(is_correct, sample, texts)) if split == "domain" else None
    return Cell(
        target=target,
        defense=defense,
        split=split,
        n=len(sample),
        refused=outcomes.count(Outcome.REFUSED),
        complied=outcomes.count(Outcome.COMPLIED),
        broken=outcomes.count(Outcome.BROKEN),
        correct=correct,
        seconds=seconds,
    )


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from anchorlm.cli._bars import stderr

    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True)
