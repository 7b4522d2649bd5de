from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from anchorlm.cli._errors import complain
from anchorlm.cli._loading import load_guard
from anchorlm.cli._offers import offer
from anchorlm.cli._output import Output
from anchorlm.cli._recipes import digest
from anchorlm.files import BadRow, PromptRow, read_rows
from anchorlm.guard import Guard, Recipe
from anchorlm.records import AnchorLMError, DefenseError, Request, Response, UserError, as_messages

if TYPE_CHECKING:
    from rich.progress import Progress

_NAMED = 10
"""How many skipped rows are explained one by one at the end."""


_Outcome = tuple[int, Response | UserError | DefenseError, str | None]
"""Place of a row, what came of it, and the digest of what answered."""


@dataclass(slots=True)
class _Tally:
    """What became of the rows."""

    written: int = 0
    refused: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)


def run(
    recipe: Recipe,
    source: str,
    place: str,
    *,
    column: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    trace: bool = False,
    concurrency: int = 64,
    ray: bool = False,
    workers: int | None = None,
    probe: bool | None = None,
) -> None:
    """Answers the rows of `source` that `place` does not hold yet, and writes each as soon as it is done.

    Raises:
        UserError: A malformed row or a request that fails, unless `skip_bad`. Rows that are done stay written. Or
            Ray is not there, or `workers` without it.
        DefenseError: A defense failed and the guard is not allowed to refuse.
    """
    if workers is not None and not ray:
        raise UserError("--workers goes with --ray: without it one process answers, and --concurrency says how much.")
    if ray:
        from anchorlm.ray import answers
    everything = read_rows(source, column)
    if place != "-" and source != "-" and Path(place).exists() and Path(place).samefile(source):
        raise UserError(f"{place!r} is the input: choose another output.")
    rows = everything[:limit]
    bad = [row for row in rows if isinstance(row, BadRow)]
    if bad and not skip_bad:
        raise UserError(_refusal_to_read(bad))
    with Output(place, everything, digest(recipe), overwrite=overwrite, trace=trace) as output:
        tally = _Tally(skipped=[f"line {row.line}: {row.why}" for row in bad])
        pending = [row for row in rows if isinstance(row, PromptRow) and row.index not in output.done]
        start = monotonic()
        if pending:
            if ray:
                asks = [(row.prompt, offer(row)) for row in pending]
                tried = recipe.probe.run if probe is None else probe
                found = answers(recipe, asks, probe=tried, workers=workers, concurrency=concurrency)
                outcomes = ((place, one.outcome, one.pipeline) for place, one in found)
                _write(outcomes, pending, output, tally, skip_bad=skip_bad)
            else:
                guard = load_guard(recipe, probe=probe)
                _answer(guard, pending, output, tally, skip_bad=skip_bad, concurrency=concurrency)
        _report(tally, len(output.done), place, monotonic() - start)
        if tally.failed:
            raise DefenseError(
                f"{tally.failed} rows were refused because a model or the judge failed (failed: true in the output, "
                "--trace says why). Fix the cause and rerun: only those rows are retried."
            )


def _answer(
    guard: Guard, pending: Sequence[PromptRow], output: Output, tally: _Tally, *, skip_bad: bool, concurrency: int
) -> None:
    """Answers rows in this process."""
    pipeline = getattr(guard.defense, "pipeline", None)
    with closing(_found(guard, pending, concurrency)) as found:
        outcomes = ((position, outcome, pipeline) for position, outcome in found)
        _write(outcomes, pending, output, tally, skip_bad=skip_bad)


def _found(
    guard: Guard, pending: Sequence[PromptRow], concurrency: int
) -> Generator[tuple[int, Response | UserError | DefenseError], None, None]:
    """What comes of each row, by its place. A row that makes no request costs only itself."""
    places: list[int] = []  # of the rows that make one, as the guard counts them
    unfit: deque[tuple[int, UserError | DefenseError]] = deque()

    def requests() -> Iterator[Request]:
        for place, row in enumerate(pending):
            try:
                request = guard.request(as_messages(row.prompt), **offer(row))
            except (UserError, DefenseError) as error:
                unfit.append((place, error))
                continue
            places.append(place)
            yield request

    # Where a row ends the run, the others are ended here and now, and not when their memory is cleared.
    with closing(cast("Generator[Any, None, None]", guard.map(requests(), concurrency=concurrency))) as outcomes:
        for number, outcome in outcomes:
            while unfit:
                yield unfit.popleft()
            yield places[number], outcome
    yield from unfit


def _write(
    outcomes: Iterable[_Outcome], pending: Sequence[PromptRow], output: Output, tally: _Tally, *, skip_bad: bool
) -> None:
    with _progress() as progress:
        task = progress.add_task("Answering", total=len(pending))
        for position, outcome, output.pipeline in outcomes:
            row = pending[position]
            if isinstance(outcome, AnchorLMError):
                if not skip_bad:
                    raise type(outcome)(f"Line {row.line}: {outcome}") from outcome
                tally.skipped.append(f"line {row.line}: {outcome}")
            else:
                output.write(row, outcome)
                tally.written += 1
                tally.refused += outcome.finish_reason == "refusal"
                tally.failed += outcome.failed
            progress.advance(task)


def _report(tally: _Tally, kept: int, place: str, seconds: float) -> None:
    where = "" if place == "-" else f" to {place}"
    before = f" ({kept} were there already)" if kept else ""
    refused = f"; {tally.refused} of them the configured refusal" if tally.refused else ""
    complain(f"{tally.written} rows written{where}{before} in {seconds:.1f} s{refused}.")
    if tally.skipped:
        named = "; ".join(reason.rstrip(".") for reason in tally.skipped[:_NAMED])
        more = f"; and {len(tally.skipped) - _NAMED} more" if len(tally.skipped) > _NAMED else ""
        complain(f"{len(tally.skipped)} rows skipped: {named}{more}.")


def _refusal_to_read(bad: Sequence[BadRow]) -> str:
    others = ", ".join(str(row.line) for row in bad[1 : _NAMED + 1])
    more = f" (and {len(bad) - 1} more, on lines {others}{', ...' if len(bad) > _NAMED + 1 else ''})" if others else ""
    return f"Line {bad[0].line} cannot be answered: {bad[0].why}{more}; fix it, or go on without with --skip-bad."


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from anchorlm.cli._bars import Rate, stderr

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal)
