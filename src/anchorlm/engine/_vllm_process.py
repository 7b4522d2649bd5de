"""vLLM's processes belong to the process of the guard: they end with it, and only it hears what a terminal says."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import cast

_OWNER = "ANCHORLM_VLLM_OWNER"
"""Environment variable: the id of the process that starts vLLM."""


def own() -> None:
    """Makes the vLLM that is started next belong to this process."""
    os.environ[_OWNER] = str(os.getpid())


def join_owner() -> None:
    """Run in each process of vLLM. Where a guard has started it, it ends as soon as the guard's process is gone.

    Else it would wait for a word from that process, which may have been killed. And it leaves the group to which a
    terminal sends Ctrl-C: it would end at once, in the middle of answers that the guard still waits for.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.environ.get(_OWNER) == str(parent.pid):
        os.setpgid(0, 0)
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: object) -> None:
    cast("BaseProcess", parent).join()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
