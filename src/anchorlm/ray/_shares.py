from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anchorlm.evaluation import CompareRecipe, Crew, Embedded, Share
from anchorlm.ray._pool import Work, shared
from anchorlm.ray._start import started

Records = list[dict[str, Any]]
"""What a share brings."""


def crew(workers: int | None = None) -> Crew:
    """Answers a comparison's prompts on a Ray cluster: give it to `compare` as `crew`.

    Args:
        workers: How many processes there are. None: one for each GPU, or one for each machine where there is none.
    """
    return partial(_records, workers)


def _records(
    workers: int | None, recipe: CompareRecipe, folder: Path, embedded: Embedded | None, shares: Sequence[Share]
) -> Iterator[Records]:
    if not shares:  # Ray takes seconds to start
        return
    with started(workers) as found:
        for _, records in shared(shares, partial(_begin, recipe, folder.resolve(), embedded), found):
            yield records


def _begin(recipe: CompareRecipe, folder: Path, embedded: Embedded | None) -> Work[Share, Records]:
    """The models of a worker. It holds those of one target at a time."""
    from anchorlm.evaluation.runs._contestants import Pool
    from anchorlm.evaluation.runs._run import answer_share
    from anchorlm.evaluation.runs._setting import Setting

    pool = Pool(recipe, folder, embedded)
    setting = Setting.of(recipe, pool)
    last = ""

    def work(share: Share) -> Records:
        nonlocal last
        if last and last != share.target:
            pool.release(last)
        last = share.target
        return answer_share(setting, pool, share)

    return work
