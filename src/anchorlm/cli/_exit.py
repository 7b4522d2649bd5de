from __future__ import annotations

# Only what the interpreter has loaded anyway, or loads in a moment: the sooner Ctrl-C is ours, the better.
import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130
"""What a shell reports for a program that was ended by Ctrl-C."""

_CURSOR = "\x1b[?25h"
"""Shows the cursor of a terminal, which a spinner hides."""

_IMPORT = "<frozen importlib._bootstrap>"
"""Where every import passes through."""


class _Interrupts:
    """What became of Ctrl-C so far."""

    raised = False
    """Whether one was raised that no command has dealt with."""


def run_and_exit(command: Callable[[], object]) -> None:
    """Runs the command line and ends the process with its exit status, whatever is under way on other threads.

    The interpreter would end first what a forward on the engines' thread is working with, and be killed for it.
    """
    try:
        patient()
        code = _status(command)
    except KeyboardInterrupt:  # on the way into the command, or out of it
        _say()
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "logging" in sys.modules:
        sys.modules["logging"].shutdown()
    _leave(INTERRUPTED if _Interrupts.raised else code)


def patient() -> None:
    """Lets the next Ctrl-C interrupt what is done, and the one after that end the process at once.

    Within an import the first one ends it at once, too: there is nothing to tidy up yet, and an exception in the middle
    of some library may be shown as a traceback, taken for another error, or lost.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            _say()
            _leave(INTERRUPTED)
        _Interrupts.raised = True
        signal.signal(signal.SIGINT, lambda *_: _leave(INTERRUPTED))
        raise KeyboardInterrupt

    _Interrupts.raised = False
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, interrupt)


def _status(command: Callable[[], object]) -> int:
    code: object = 0
    try:
        command()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        _say()
        code = INTERRUPTED
    except Exception:  # as --debug wants to see it
        if not _Interrupts.raised:
            sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def _say() -> None:
    with suppress(OSError):
        os.write(2, b"anchorlm: Interrupted.\n")  # sys.stderr may be at work on something


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is under way."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _unraisable(error: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that came while Python was clearing up, where exceptions are shown and forgotten."""
    if error.exc_type is KeyboardInterrupt:
        _say()
        _leave(INTERRUPTED)
    sys.__unraisablehook__(error)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        # Closed, anyone who read it is gone, or it is at work on something.
        with suppress(OSError, ValueError, AttributeError, RuntimeError):
            if stream.isatty():
                stream.write(_CURSOR)
            stream.flush()
    os._exit(code)
