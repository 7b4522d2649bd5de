from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""What a shell reports for a program that was ended by Ctrl-C."""

_CURSOR = "\x1b[?25h"
"""Shows the cursor of a terminal, which a spinner hides."""


def run_and_exit(command: Callable[[], None]) -> None:
    """Runs the command line and ends the process with its exit status, whatever is under way on other threads.

    The interpreter would end first what a forward on the engines' thread is working with, and be killed for it.
    """
    patient()
    code: object = 0
    try:
        command()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    logging.shutdown()
    _leave(code if isinstance(code, int) else 0)


def patient() -> None:
    """Lets the next Ctrl-C interrupt what is done, and the one after that end the process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: _leave(INTERRUPTED))
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or whoever read it is gone
            if stream.isatty():
                stream.write(_CURSOR)
            stream.flush()
    os._exit(code)
