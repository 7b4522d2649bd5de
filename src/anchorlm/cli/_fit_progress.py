from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from anchorlm.cli._errors import complain


@contextmanager
def fit_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is done now, on a terminal. Elsewhere, as in a log, a line now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from anchorlm.cli._bars import stderr

    if not stderr.is_terminal:
        yield Log()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr) as progress:
        tasks = {"": progress.add_task("Loading the models", total=None)}

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                progress.update(tasks[""], visible=False)
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield step


class Log:
    """Says how far it is, at most once in a while."""

    EVERY = 30.0

    def __init__(self) -> None:
        self._begun = self._said = monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = monotonic()
        if now - self._said >= self.EVERY:
            self._said = now
            complain(f"{what}: {done} of {total}, {(now - self._begun) / 60:.0f} min so far.")
