from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Generic, TypeVar

from anchorlm.ray._start import Crew
from anchorlm.records import AnchorLMError, ModelError, UserError
from anchorlm.team import allow_code, code_allowed

_log = logging.getLogger("anchorlm")

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = Callable[[Item], Result]
"""What a worker does with one item."""

_TRIES = 3
"""How often an item is given out again whose worker was killed. One that kills every worker must end the run."""

_TASKS = 4_096
"""Most tasks of a run. Ray takes a millisecond or two for each before the first begins."""


def shared(items: Sequence[Item], begin: Callable[[], Work[Item, Result]], crew: Crew, *, at_once: int = 1
           ) -> Iterator[tuple[int, Result]]:  # fmt: skip
    """Results of a pool of actors, in the order in which they are done, each with the place of its item.

    An item is whole or not there: Ray gives out again what a killed worker had.

    Args:
        items: What is to be done.
        begin: Called once in each worker, to load what it needs.
        crew: The workers.
        at_once: How many items a worker has under way.

    Raises:
        AnchorLMError: What `begin` or the work raised in a worker.
        ModelError: Workers are killed again and again.
        UserError: Ray is there without the parts that this needs.
    """
    try:
        from ray.data import DataContext
    except ImportError as error:  # a Ray without the parts of its own that this needs
        raise UserError(f"Ray lacks parts that this needs ({error}): pip install 'anchorlm[ray]'.") from None
    with _quiet(DataContext.get_current()):
        yield from _results(items, begin, crew, at_once)


@contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Ray Data without its bars and its log, while this lasts."""
    log = logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False  # the bar is ours
    log.setLevel(logging.CRITICAL)  # an error is raised, and told once
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)


def _results(
    items: Sequence[Item], begin: Callable[[], Work[Item, Result]], crew: Crew, at_once: int
) -> Iterator[tuple[int, Result]]:
    import ray
    from ray.data import ActorPoolStrategy

    rows = [{"place": place, "item": pickle.dumps(item)} for place, item in enumerate(items)]
    # An item is a row and, up to some thousands, a task of its own: its result comes when it is done, not when a whole
    # batch is, and what goes down with a killed run is only what was under way.
    with warnings.catch_warnings():
        # Ray 2.64 takes `max_task_retries` away, and has nothing in its place yet: our extra ends before it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ray.data.from_items(rows, override_num_blocks=min(len(rows), _TASKS)).map(
            Worker,
            fn_constructor_args=(begin, crew.cpus, code_allowed()),
            compute=ActorPoolStrategy(
                size=crew.size, max_tasks_in_flight_per_actor=at_once, max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=crew.cpus,
            num_gpus=crew.gpus,
            max_task_retries=_TRIES,  # by default an item that kills its worker would be given out for ever
        )  # fmt: skip
    told: set[str] = set()
    try:
        for row in pool.iter_rows():
            failed, result, said = pickle.loads(row["result"])
            for level, sentence in said:
                if sentence not in told:  # every worker would say it
                    told.add(sentence)
                    _log.log(level, "%s", sentence)
            if failed:
                raise result
            yield row["place"], result
    except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError) as error:
        raise ModelError(
            "A worker was ended from outside again and again, for want of memory maybe: run again with fewer "
            "--workers; what is answered is kept."
        ) from error


class Worker(Generic[Item, Result]):
    """An actor of the pool. What it needs is loaded with its first item: an error is then told like any other.

    Args:
        begin: Loads it.
        threads: How many it computes with.
        code: Whether recipes may name Python functions.
    """

    def __init__(self, begin: Callable[[], Work[Item, Result]], threads: int, code: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        allow_code(code)
        self._begin = begin
        self._work: Work[Item, Result] | None = None
        self._lock = Lock()
        self._said = _Said()
        log = logging.getLogger("anchorlm")
        log.addHandler(self._said)
        log.propagate = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row's item, done."""
        try:
            with self._lock:
                if self._work is None:
                    self._work = self._begin()
            done: tuple[bool, object] = (False, self._work(pickle.loads(row["item"])))
        except AnchorLMError as error:
            done = (True, error)
        return {"place": row["place"], "result": pickle.dumps((*done, self._said.taken()))}


class _Said(logging.Handler):
    """Keeps what is to be told where the command runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        self._records.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        """What was said since the last time."""
        with self.lock or Lock():
            taken, self._records = self._records, []
        return taken
