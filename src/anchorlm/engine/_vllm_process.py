"""vLLM's processes belong to the process of the guard: they end with it, and only it hears what a terminal says."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, NoReturn, cast

OWNER = "ANCHORLM_VLLMOWNER"
"""Environment variable: the id of the process that starts vLLM."""

_PLUGINS, _OURS = "VLLM_PLUGINS", "anchorlm"
"""Environment variable: the only plug-ins that vLLM loads, if it is set. And the name of the one that runs
`join_owner`."""


def own() -> None:
    """Makes the vLLM that is started next belong to this process."""
    os.environ[OWNER] = str(os.getpid())
    named = os.environ.get(_PLUGINS)
    if named is not None and _OURS not in named.split(","):
        os.environ[_PLUGINS] = ",".join(filter(None, [named, _OURS]))
    # Python's own process that removes shared memory of processes which are gone: it would complain of each.
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    resource_tracker.ensure_running()
    if before is None:
        del os.environ["PYTHONWARNINGS"]
    else:
        os.environ["PYTHONWARNINGS"] = before


def join_owner() -> None:
    """Run in each process of vLLM. One that a guard has started ends at once with the guard, or when it is told to.

    Else it would wait for a word from a process that may have been killed, and take seconds to end. And it leaves the
    group to which a terminal sends Ctrl-C: it would end in the middle of answers that the guard still waits for.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.environ.get(OWNER) == str(parent.pid):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, _end)
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: object) -> None:
    cast("BaseProcess", parent).join()
    _end()


def _end(*_: Any) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)  # an answer that is still waited for has failed
