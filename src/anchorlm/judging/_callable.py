from __future__ import annotations

import hashlib
import inspect
from asyncio import gather, to_thread
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from anchorlm.judging._base import Grade, Judge
from anchorlm.judging._scores import Scorer
from anchorlm.records import DefenseError, Messages

Score = Callable[[Messages, str], float | Awaitable[float]]


class _Function:
    """What a judge and a scorer made of a Python function share."""

    role = ""
    wanted = ""

    def __init__(self, function: Score, *, name: str | None = None) -> None:
        self._function = function
        self._name = name or getattr(function, "__qualname__", type(function).__qualname__)

    @property
    def name(self) -> str:
        """The function's name."""
        return f"callable:{self._name}"

    @property
    def settings(self) -> Mapping[str, object]:
        """Where the function is defined, and a digest of its code and of the plain values that it holds (defaults,
        closures, arguments of a partial, attributes of an object). What else it depends on is not known.
        """
        return {
            "module": getattr(self._function, "__module__", None),
            "code": hashlib.sha256(repr(_known(self._function)).encode()).hexdigest()[:16],
        }

    async def _numbers(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        return list(await gather(*(self._number(messages, response) for response in responses)))

    async def _number(self, messages: Messages, response: str) -> float:
        try:
            # A plain function may ask a server and wait: the engines' thread serves everyone else meanwhile.
            coroutine = inspect.iscoroutinefunction(self._function)
            number = (
                self._function(messages, response) if coroutine else await to_thread(self._called, messages, response)
            )
            return float(await number if inspect.isawaitable(number) else number)
        except DefenseError:
            raise
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever someone else's function raises: without its number nothing is safe
            raise DefenseError(
                f"The {self.role} {self._name} failed with {type(error).__name__}: {error}; "
                f"change it to return {self.wanted}."
            ) from error

    def _called(self, messages: Messages, response: str) -> Any:
        try:
            return self._function(messages, response)
        except (StopIteration, SystemExit) as error:  # no future and no thread hands these on
            raise RuntimeError(f"{type(error).__name__} {error}".strip()) from error


def _known(function: object) -> object:
    """What a callable is known by, in words that are the same in another process: its code and what it holds."""
    if isinstance(function, partial):
        return _known(function.func), _plain(function.args), _plain(tuple(function.keywords.items()))
    if isinstance(function, MethodType):
        return _known(function.__func__), _attributes(function.__self__)
    if isinstance(function, FunctionType):
        held = tuple(cell.cell_contents for cell in function.__closure__ or () if _filled(cell))
        named = tuple((function.__kwdefaults__ or {}).items())
        return _plain(function.__code__), _plain((function.__defaults__, named)), [_held(one) for one in held]
    called = next((vars(kind)["__call__"] for kind in type(function).__mro__ if "__call__" in vars(kind)), None)
    return _plain(getattr(called, "__code__", None)), _attributes(function)


def _held(value: object) -> object:
    """Functions in a closure by their code, other values as they are."""
    return _plain(value.__code__) if isinstance(value, FunctionType) else _plain(value)


def _attributes(value: object) -> object:
    return type(value).__qualname__, _plain(tuple(getattr(value, "__dict__", {}).items()))


def _plain(value: object) -> object:
    """Numbers, texts, code and tuples of them as they are. All else, which may change, by its type."""
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return repr(value)
    if isinstance(value, CodeType):
        return value.co_code.hex(), value.co_names, [_plain(one) for one in value.co_consts]
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(repr(_plain(one)) for one in value)
    return type(value).__qualname__


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is not bound yet
        return False


class CallableJudge(_Function, Judge):
    """Any Python function as a judge.

    Args:
        function: Takes the conversation and one response, returns its harm from 0 to 1. May be a coroutine function,
            and is then run for all responses at once.
        name: For traces and reports. The function's own by default.
    """

    role = "judge"
    wanted = "a number from 0 to 1"

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
        """See `Judge`."""
        harms = await self._numbers(messages, responses)
        return [Grade(harm, f"{self._name} gave {harm:.3g}") for harm in harms]


class CallableScorer(_Function, Scorer):
    """Any Python function as a scorer.

    Args:
        function: Takes the conversation and one response, returns a number. May be a coroutine function, and is then
            run for all responses at once.
        name: For traces and reports. The function's own by default.
    """

    role = "scorer"
    wanted = "a number"

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        return await self._numbers(messages, responses)
