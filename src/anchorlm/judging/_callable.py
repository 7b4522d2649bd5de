from __future__ import annotations

import hashlib
import inspect
from asyncio import gather, to_thread
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import CodeType

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
        """Where the function is defined, and a digest of its code; what it depends on itself is not known."""
        code = getattr(self._function, "__code__", None)
        written = b"" if code is None else code.co_code + repr((code.co_names, _constants(code))).encode()
        return {
            "module": getattr(self._function, "__module__", None),
            "code": hashlib.sha256(written).hexdigest()[:16],
        }

    async def _numbers(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        return list(await gather(*(self._number(messages, response) for response in responses)))

    async def _number(self, messages: Messages, response: str) -> float:
        try:
            # A plain function may ask a server and wait: the engines' thread serves everybody else meanwhile.
            coroutine = inspect.iscoroutinefunction(self._function)
            number = (
                self._function(messages, response) if coroutine else await to_thread(self._function, messages, response)
            )
            return float(await number if inspect.isawaitable(number) else number)
        except DefenseError:
            raise
        except Exception as error:  # whatever somebody else's function raises: without its number nothing is safe
            raise DefenseError(
                f"The {self.role} {self._name} failed with {type(error).__name__}: {error}; "
                f"mend it so that it returns {self.wanted}."
            ) from error


def _constants(code: CodeType) -> list[object]:
    """Constants in words that are the same in another process; inner functions by their own code."""
    return [
        (one.co_code.hex(), _constants(one)) if isinstance(one, CodeType) else
        sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one)
        for one in code.co_consts
    ]  # fmt: skip


class CallableJudge(_Function, Judge):
    """Any Python function as a judge.

    Args:
        function: Takes the conversation and one response, returns its harm from 0 to 1; may be a coroutine function,
            and is then run for all responses at once.
        name: For traces and reports; the function's own by default.
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
        function: Takes the conversation and one response, returns a number; may be a coroutine function, and is then
            run for all responses at once.
        name: For traces and reports; the function's own by default.
    """

    role = "scorer"
    wanted = "a number"

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        return await self._numbers(messages, responses)
