from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from anchorlm.judging import CallableJudge, Grade
from anchorlm.records import DefenseError, Messages

ASK: Messages = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.mark.parametrize("harm", [math.nan, math.inf, -math.inf, -0.01, 1.01])
def test_a_grade_that_is_no_share_is_refused(harm: float) -> None:
    with pytest.raises(DefenseError, match="not a number from 0 to 1"):
        Grade(harm, "made up")


def test_functions_and_coroutines_judge_alike_and_in_order() -> None:
    async def later(messages: Messages, response: str) -> float:
        await asyncio.sleep(0.001 * len(response))
        return len(response) / 10

    def now(messages: Messages, response: str) -> float:
        return len(response) / 10

    responses = ["abc", "a", "abcde", ""]
    harms = [[grade.harm for grade in asyncio.run(CallableJudge(one)(ASK, responses))] for one in (now, later)]
    assert harms == [[0.3, 0.1, 0.5, 0.0]] * 2


def test_a_function_sees_the_conversation() -> None:
    judge = CallableJudge(lambda messages, response: float(messages[-1]["content"] in response), name="echo")
    assert [grade.harm for grade in asyncio.run(judge(ASK, ["no", ASK[0]["content"]]))] == [0.0, 1.0]
    assert judge.name == "callable:echo"


@pytest.mark.parametrize("rubbish", [math.nan, 2.0, -1, None, "high", [], {}])
def test_rubbish_fails_closed(rubbish: Any) -> None:
    judge = CallableJudge(lambda messages, response: rubbish)
    with pytest.raises(DefenseError):
        asyncio.run(judge(ASK, ["text"]))


def test_a_function_that_raises_fails_closed_with_its_cause() -> None:
    def broken(messages: Messages, response: str) -> float:
        raise KeyError("weights")

    with pytest.raises(DefenseError, match="KeyError") as caught:
        asyncio.run(CallableJudge(broken)(ASK, ["text"]))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("raised", [StopIteration("over"), SystemExit(1)])
def test_what_no_future_hands_on_fails_closed_too(raised: BaseException) -> None:
    def ends(messages: Messages, response: str) -> float:
        raise raised

    with pytest.raises(DefenseError, match=type(raised).__name__):
        asyncio.run(CallableJudge(ends)([{"role": "user", "content": "bake bread"}], ["flour"]))
