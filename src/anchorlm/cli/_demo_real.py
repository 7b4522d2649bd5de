from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from anchorlm.cli._loading import busy, quiet_libraries
from anchorlm.cli._real import COMPOSED, TARGET, needed, recipe, require_real
from anchorlm.evaluation import Case, OwnPrompts, own_prompts
from anchorlm.guard import Guard, Recipe
from anchorlm.records import AnchorLMError, UserError
from anchorlm.team import Started

SHOWN: tuple[tuple[OwnPrompts, str | None, int], ...] = (
    ("harmful", "general", 3), ("harmful", "finance", 2), ("look-alike", "general", 2), ("look-alike", "finance", 1),
    ("plain", None, 1), ("tasks", "finance", 1),
)  # fmt: skip
"""How many of the library's held prompts of each kind and domain: ten, drawn and not chosen."""

LONGEST = 40
"""Tokens of an answer."""

NEXT = """
Go on:
  anchorlm serve --real                               the same guard behind OpenAI's API, with a page to try it
  anchorlm zoo recipe real-finance --defense inferenceguard > guard.toml
                                                      its recipe, to change
  anchorlm recipe real > real.toml                    the comparison on public sets, with intervals"""


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt with both answers.

    Attributes:
        kind: What a good guard does with it.
        prompt: What was asked.
        undefended: What the specialist says by itself.
        guarded: What it says under guard.
    """

    kind: str
    prompt: str
    undefended: str
    guarded: str


def run(*, json_path: Path | None, limit: int | None, longest: int = LONGEST) -> None:
    """Answers the prompts by the real specialist, bare and guarded, and shows both answers.

    Args:
        json_path: Also gets them.
        limit: Only the first prompts.
        longest: Tokens of an answer.

    Raises:
        UserError: A model is not installed, or a file cannot be written.
    """
    require_real(*needed(COMPOSED))
    quiet_libraries()
    cases = shown()[:limit]
    started: Started = []
    start = perf_counter()
    with busy("Loading the models"):
        guards = [
            Guard.from_recipe(_described(defense, longest), started=started) for defense in ("undefended", COMPOSED)
        ]
    loaded = perf_counter()
    with busy("Answering"):
        texts = [_answers(guard, cases) for guard in guards]
    pairs = [Pair(case.kind, case.prompt, *answers) for case, *answers in zip(cases, *texts, strict=True)]
    _show(pairs)
    typer.echo(
        f"{TARGET}, undefended and under the composed guard; {len(pairs)} prompts that nothing was trained, fitted or "
        f"calibrated on; {loaded - start:.0f} s to load, {perf_counter() - loaded:.0f} s to answer."
    )
    typer.echo(NEXT)
    if json_path is not None:
        try:
            json_path.write_text(json.dumps([asdict(pair) for pair in pairs], indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{str(json_path)!r} cannot be written: {error.strerror or error}.") from None


def shown() -> list[Case]:
    """The prompts, harmful and harmless in turn."""
    harmful: list[Case] = []
    others: list[Case] = []
    for prompts, domain, n in SHOWN:
        (harmful if prompts == "harmful" else others).extend(own_prompts(prompts, domain)[:n])
    return [case for pair in zip(harmful, others, strict=True) for case in pair]


def _described(defense: str, longest: int) -> Recipe:
    data = tomllib.loads(recipe(TARGET, defense)) | {"generation": {"max_new_tokens": longest}}
    return Recipe.parse(data, where=f"the recipe of {TARGET}")


def _answers(guard: Guard, cases: Sequence[Case]) -> list[str]:
    texts = [""] * len(cases)
    requests = [guard.request(case.messages) for case in cases]
    for index, outcome in guard.map(requests, concurrency=len(requests)):
        if isinstance(outcome, AnchorLMError):
            raise outcome
        texts[index] = outcome.text.strip()
    return texts


def _show(pairs: Sequence[Pair]) -> None:
    table = Table(box=box.SIMPLE, show_lines=True)
    for title, ratio in (("prompt", 3), ("undefended", 4), ("composed", 4)):
        table.add_column(title, ratio=ratio, overflow="fold")
    for pair in pairs:
        # As texts, because square brackets in an answer are no markup.
        cells = (f"({pair.kind}) {pair.prompt}", pair.undefended, pair.guarded)
        table.add_row(*(" ".join(cell.split()).replace("[", r"\[") for cell in cells))
    Console(width=max(100, Console().width), highlight=False).print(table)
