from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from queue import Empty
from threading import Thread
from traceback import format_exc
from typing import Any

from anchorlm.evaluation.runs._contestants import Embedded, Pool
from anchorlm.evaluation.runs._recipe import CompareRecipe
from anchorlm.evaluation.runs._setting import Setting
from anchorlm.records import AnchorLMError, ModelError

Pair = tuple[str, int]
"""A target and the place of a defense among the contestants."""

Answering = Callable[[Setting, Pool, Callable[[Mapping[str, Any]], None], Pair], None]
"""Answers what is missing of a pair, and hands over every record."""

_PATIENCE = 1.0
"""Seconds between two looks at whether the workers live."""

_FAREWELL = 30.0
"""Seconds that a worker which has nothing left to do gets to end by itself."""


def records(
    setting: Setting, folder: Path, embedded: Embedded | None, pairs: list[Pair], workers: int, answering: Answering
) -> Iterator[dict[str, Any]]:
    """Answers of several processes, as they come. Each takes the next pair when it has done one, and has models of its
    own. Nothing but this process writes, so what is here is safe whichever of them is killed.

    Raises:
        AnchorLMError: What a worker raised.
        ModelError: A worker ended without a word: killed for memory, say.
        RuntimeError: A worker met a bug. Its traceback is a note.
    """
    import torch

    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for pair in pairs:
        todo.put(pair)
    count = min(workers, len(pairs))
    for _ in range(count):
        todo.put(None)
    threads = max(1, torch.get_num_threads() // workers)
    crew = [
        context.Process(
            target=_work, args=(setting.recipe, folder, embedded, threads, answering, todo, done), daemon=True
        )
        for _ in range(count)
    ]
    try:
        for worker in crew:
            worker.start()
        working = count
        while working:
            try:
                kind, data = done.get(timeout=_PATIENCE)
            except Empty:
                _check(crew)
                continue
            if kind == "record":
                yield data
            elif kind == "error":
                raise data
            else:
                working -= 1
        for worker in crew:
            worker.join(_FAREWELL)  # who is cut short leaves semaphores behind, and Python says so
    finally:
        for worker in crew:
            worker.terminate()
            worker.join()


def _check(crew: list[Any]) -> None:
    if any(worker.exitcode not in (None, 0) for worker in crew):
        raise ModelError(
            "A worker process was ended from outside, for want of memory maybe: run again with fewer --workers; what "
            "is answered is kept."
        )


def _work(
    recipe: CompareRecipe, folder: Path, embedded: Embedded | None, threads: int, answering: Answering, todo: Any,
    done: Any,
) -> None:  # fmt: skip
    """A worker's whole life."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        pool = Pool(recipe, folder, embedded)
        setting = Setting.of(recipe, pool)
        last = None
        while (pair := todo.get()) is not None:
            if last is not None and last != pair[0]:
                pool.release(last)
            last = pair[0]
            answering(setting, pool, lambda record: done.put(("record", dict(record))), pair)
        done.put(("end", None))
    except Exception as error:  # the parent raises it; not every library's own error can be pickled
        told = error if isinstance(error, AnchorLMError) else RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(format_exc())
        done.put(("error", told))


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: one that was killed with -9 stops no one."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)
