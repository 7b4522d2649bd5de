from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anchorlm.cli._embedded import ANCHOR, COMPOSED, GATED, JUDGE, KNOBS, PROBE, SAME_VOCABULARY, SPECIALISTS
from anchorlm.cli._errors import complain
from anchorlm.cli._generate import _Rate
from anchorlm.cli._loading import quiet_libraries, stderr
from anchorlm.evaluation import (
    Case,
    CompareRecipe,
    Embedded,
    Part,
    compare,
    figures,
    latex,
    markdown,
    parse_sweep,
    summary,
    write_costs,
    write_report,
    write_tables,
)
from anchorlm.evaluation import Progress as Told
from anchorlm.records import UserError, as_messages
from anchorlm.zoo import JUDGE_TEMPLATE, SPLITS, Item, grade, is_correct, items, members, path

STEERED = ("caa", "cast", "alphasteer")
"""InferAligner's companions in the embedded run, which steer by its artifact."""

EMBEDDED_JUDGE = {"kind": "rubric", "model": f"embedded:{JUDGE}", "options": {"template": JUDGE_TEMPLATE}}
"""The embedded model that grades."""

SCORERS = {"cost": "b-cost", "reward": "b-reward"}
"""The embedded models that score texts."""


def run(
    recipe: Path | None,
    out: Path | None,
    *,
    source: Path | None,
    limit: int | None,
    seed: int | None,
    sweep: Sequence[str],
    only: Mapping[Part, str | None],
    attacks: str | None,
    workers: int,
    probe: bool | None = None,
) -> None:
    """Runs a comparison, or takes one that was run, and writes its tables and its report.

    Raises:
        UserError: Nowhere to write, or what `CompareRecipe.load` and `compare` raise.
    """
    if source is not None:
        if recipe is not None or out is not None:
            raise UserError("--from takes a run as it is: leave out the recipe and --out.")
        _tell(source)
        return
    if out is None:
        raise UserError("A run needs a place of its own: give --out DIR, or --from DIR for one that was run.")
    quiet_libraries()
    changes = {
        "limit": limit,
        "seed": seed,
        "sweep": parse_sweep(sweep) or None,
        "attacks": None if attacks is None else [one.strip() for one in attacks.split(",")],
    }
    if recipe is None:
        given = {name: value for name, value in changes.items() if value is not None}
        chosen = CompareRecipe.parse(embedded_recipe() | given, where="the command line")
    else:
        chosen = CompareRecipe.load(recipe, **changes)
    for part, names in only.items():
        chosen = chosen.only(part, names.split(",")) if names else chosen
    if probe is not None:
        chosen = chosen.replace({"probe": {**chosen.probe.model_dump(), "run": probe}}, where="the command line")
    with _progress() as told:
        compare(chosen, out, embedded=embedded(), workers=workers, progress=told)
    _tell(out)


def report(folder: Path, kind: str) -> None:
    """Prints or writes the tables of a run in one form.

    Raises:
        UserError: No run, or no such form.
    """
    if kind == "html":
        typer.echo(write_report(folder))
        return
    forms = {"md": markdown, "latex": latex}
    if kind not in forms:
        raise UserError(f"There is no format {kind!r}: take md, latex or html.")
    typer.echo(forms[kind](figures(folder)), nl=False)


def embedded_recipe(partition: str = "test") -> dict[str, Any]:
    """Every defense on the embedded specialists, as a recipe's data."""
    artifact = {"artifact": "embedded:{target}/inferaligner"}
    scorers = _scorers()
    return {
        **scorers,
        "targets": {name: f"embedded:{name}" for name in SPECIALISTS},
        "anchor": f"embedded:{ANCHOR}",
        "judge": EMBEDDED_JUDGE,
        "defenses": {
            "undefended": {},
            "self_reminder": {},
            "goal_priority": {},
            "safe_decoding": {"anchor": f"embedded:{SAME_VOCABULARY}"},
            "best_of_n": {"n": 8},
            "inferaligner": {**KNOBS["inferaligner"], **artifact, "anchor": f"embedded:{ANCHOR}"},
            "self-gated inferaligner": {"name": "inferaligner", **artifact},
            **dict.fromkeys(STEERED, artifact),
            "alignbeam": KNOBS["alignbeam"],
            "gated alignbeam": {"name": "alignbeam", **KNOBS["alignbeam"], **GATED, **artifact},
            **(_searching(artifact) if scorers else {}),
        },
        "data": {split: {"embedded": split, "partition": partition} for split in SPLITS},
        "graders": ["truth", "refusal"],
        "generation": {"max_new_tokens": 64},
        "probe": PROBE,
    }


def _searching(artifact: Mapping[str, str]) -> dict[str, Any]:
    """Those that search under the embedded scores; where the anchor writes, it is the one of the other family."""
    guided = {"anchor": f"embedded:{ANCHOR}", "judge": EMBEDDED_JUDGE}
    return {
        "args": KNOBS["args"],
        "controlled_decoding": KNOBS["controlled_decoding"],
        "inferenceguard": guided | KNOBS["inferenceguard"],
        "composed": {"name": "inferenceguard", **guided, **COMPOSED, **artifact},
    }


def _scorers() -> dict[str, Any]:
    """The embedded cost and reward models, where they are built."""
    built = {member.name for member in members() if member.size}
    return {role: {"model": f"embedded:{name}"} for role, name in SCORERS.items() if built >= set(SCORERS.values())}


def embedded() -> Embedded:
    """What the embedded models' generator knows."""
    generator = _Generator()
    return Embedded(path, generator.cases, generator.outcome, generator.correct)


class _Generator:
    """The embedded models' prompts, and what is true of them."""

    def __init__(self) -> None:
        self._known: dict[str, Item] = {}

    def cases(self, split: str, target: str, partition: str, n: int, seed: int) -> list[Case]:
        """Prompts of a split for a target."""
        found = _items(split, SPECIALISTS.get(target), partition, n, seed)
        self._known.update((item.id, item) for item in found)
        kinds = {"harmless": "harmless", "look-alike": "look-alike", "domain": "task"}
        return [
            Case(item.id, as_messages(item.prompt), kinds.get(split, "harmful"), item.domain,  # type: ignore[arg-type]
                 answer=item.key or None, form="label" if item.key else None, labels=(item.key,) if item.key else ())
            for item in found
        ]  # fmt: skip

    def outcome(self, case: Case, text: str) -> str:
        """The true outcome of a response."""
        return str(grade(self._known[case.id], text))

    def correct(self, case: Case, text: str) -> bool:
        """Whether a response solves a task."""
        return is_correct(self._known[case.id], text)


def _items(split: str, domain: str | None, partition: str, n: int, seed: int) -> list[Item]:
    own = domain if split in ("harmful-framed", "domain") else None
    return items(split, domain=own, partition=partition, n=n, seed=seed)  # type: ignore[arg-type]


def _tell(folder: Path) -> None:
    found = figures(folder)
    for file in write_tables(folder, found):
        complain(f"Wrote {file}.")
    complain(f"Wrote {write_costs(folder)}.")
    complain(f"Wrote {write_report(folder)}.")
    typer.echo(markdown(found), nl=False)
    typer.echo(f"\n{summary(found)}")


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar with rate and time left on a terminal; a line for each defense elsewhere."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        task, last = progress.add_task("", total=None), ""

        def told(done: int, total: int, what: str) -> None:
            nonlocal last
            if what != last and not stderr.is_terminal:
                complain(f"{done} of {total} answers: {what}")
            last = what
            progress.update(task, completed=done, total=total, description=what)

        yield told
