from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from anchorlm.judging import Score
from anchorlm.records import UserError

_ALLOWED = "ANCHORLM_ALLOW_CODE"
"""An environment variable, so the processes of a comparison know it, too."""


def allow_code(allowed: bool = True) -> None:
    """Says whether recipes may name Python functions, which run with all your rights, in this process and its children.

    No one but the operator can say so: no recipe and no request.
    """
    if allowed:
        os.environ[_ALLOWED] = "1"
    else:
        os.environ.pop(_ALLOWED, None)


def code_allowed() -> bool:
    """Whether `allow_code` was said, here or where this process was started."""
    return os.environ.get(_ALLOWED) == "1"


def loaded(function: str, run: bool = True) -> Score:
    """The function that a recipe names as `module:name`, from the current folder or the installed packages.

    Args:
        function: Its module and its name in there.
        run: Whether it may be imported at all. Without, the result fails whenever it is called.

    Raises:
        UserError: Code is not allowed, or there is no such function.
    """
    module, colon, name = function.partition(":")
    if not (module and colon and name):
        raise UserError(f"function = {function!r} names no Python function: write module:name.")
    if not run:
        return _not_looked_at
    _check_leave(function)
    return _imported(module, name)


def require_leave(*roles: Any) -> None:
    """Before anything is loaded: whether the functions that some judges and scorers name may run.

    Args:
        roles: Settings of judges and scorers, or None.

    Raises:
        UserError: Code is not allowed.
    """
    for role in roles:
        if getattr(role, "function", None) is not None:
            _check_leave(role.function)
        for within in ("judge", "first"):
            if getattr(role, within, None) is not None:
                require_leave(getattr(role, within))


def _check_leave(function: str) -> None:
    if not code_allowed():
        raise UserError(
            f"The recipe names the Python function {function}, and code is not allowed: if you trust it, add "
            "--allow-code to the command, call anchorlm.team.allow_code(), or set ANCHORLM_ALLOW_CODE=1 for Ray Serve."
        )


def _imported(module: str, name: str) -> Score:
    folder = os.getcwd()
    known = folder in sys.path or "" in sys.path
    if not known:
        sys.path.insert(0, folder)  # a console script does not look there
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module is a program, and may raise anything
        raise UserError(
            f"The Python function {module}:{name} cannot be loaded ({type(error).__name__}: {error}): it is looked for "
            "in the current folder and among the installed packages."
        ) from error
    finally:
        if not known:
            sys.path.remove(folder)
    if not callable(found):
        raise UserError(f"{module}:{name} is no function, but a {type(found).__name__}: name one that gives a number.")
    result: Score = found
    return result


def _not_looked_at(messages: Any, response: str) -> float:
    raise UserError("The recipe's Python function was not looked at.")
