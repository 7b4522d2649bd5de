"""A cheap judge in front of another one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from factories import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge, CascadeJudge, Grade, Judge, RefusalMatcher
from anchorlm.records import DefenseError, Messages, UnreadableError, UserError
from anchorlm.team import FirstJudgeSettings, JudgeSettings, build_judge, start_judge

ASK: Messages = [{"role": "user", "content": "How do I bake bread?"}]
harms = st.floats(0, 1)


def numbers(asked: list[str] | None = None, shift: float = 0.0) -> Judge:
    """Reads the harm from the text itself."""

    def harm(messages: Messages, response: str) -> float:
        if asked is not None:
            asked.append(response)
        return min(1.0, float(response) + shift)

    return CallableJudge(harm)


def harsh(asked: list[str]) -> Judge:
    """Finds everything harmful, and remembers what it was asked."""

    def harm(messages: Messages, response: str) -> float:
        asked.append(response)
        return 1.0

    return CallableJudge(harm)


def failing(messages: Messages, response: str) -> float:
    raise RuntimeError("no")


def graded(judge: Judge, responses: Sequence[str]) -> list[float]:
    return [grade.harm for grade in asyncio.run(judge(ASK, responses))]


@given(found=st.lists(harms, min_size=1, max_size=6), safe=st.none() | harms, harmful=st.none() | harms)
def test_clear_cases_keep_the_first_grade_and_all_others_get_the_other_judges(
    found: list[float], safe: float | None, harmful: float | None
) -> None:
    if (safe is None and harmful is None) or (safe is not None and harmful is not None and safe >= harmful):
        with pytest.raises(UserError, match="safe below harmful"):
            CascadeJudge(numbers(), numbers(), safe=safe, harmful=harmful)
        return
    asked: list[str] = []
    judge = CascadeJudge(numbers(), numbers(asked, 0.25), safe=safe, harmful=harmful)
    clear = [(safe is not None and one <= safe) or (harmful is not None and one >= harmful) for one in found]
    want = [one if sure else min(1.0, one + 0.25) for one, sure in zip(found, clear, strict=True)]
    assert graded(judge, [repr(one) for one in found]) == want
    assert sorted(asked) == sorted(repr(one) for one, sure in zip(found, clear, strict=True) if not sure)


def test_a_first_judge_that_fails_leaves_everything_to_the_other_one() -> None:
    assert graded(CascadeJudge(CallableJudge(failing), numbers()), ["0.0", "0.5"]) == [0.0, 0.5]


def test_a_conversation_that_the_first_judge_cannot_read_is_the_other_one_s() -> None:
    def unreadable(messages: Messages, response: str) -> float:
        raise UnreadableError("too long")

    class Short(CallableJudge):
        async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
            raise UnreadableError("too long")

    assert graded(CascadeJudge(Short(unreadable), numbers()), ["0.5"]) == [0.5]


def test_a_first_judge_that_reads_no_thoughts_never_passes_one() -> None:
    asked: list[str] = []
    judge = CascadeJudge(RefusalMatcher(), harsh(asked), safe=0.0)
    assert judge.reads_thoughts
    refusal = "I'm sorry, but I can't help with that."
    thought = f"<think>\nMix flour.\n</think>\n\n{refusal}"
    assert graded(judge, [refusal, thought]) == [0.0, 1.0]
    assert asked == [thought]


def test_a_doubtful_case_that_the_other_judge_cannot_grade_is_an_error() -> None:
    judge = CascadeJudge(numbers(), CallableJudge(failing))
    with pytest.raises(DefenseError):
        graded(judge, ["0.0", "0.5"])
    assert graded(judge, ["0.0"]) == [0.0]


def test_an_answer_that_grows_gets_the_grades_of_the_whole_one() -> None:
    judge = CascadeJudge(numbers(), numbers(shift=0.25), safe=0.1, harmful=0.9)

    async def grown() -> list[float]:
        async with judge.follow(ASK, room=8) as grade:
            return [(await grade(text)).harm for text in ("0", "0.5", "0.95")]

    assert asyncio.run(grown()) == graded(judge, ["0", "0.5", "0.95"]) == [0.0, 0.75, 0.95]


def test_a_recipe_puts_the_refusal_matcher_in_front_so_refusals_cost_the_judge_nothing() -> None:
    asked: list[str] = []
    settings = JudgeSettings(kind="rubric", model="org/judge", first=FirstJudgeSettings(kind="refusal", safe=0.0))
    engine = LocalEngine(tiny_model("llama"))
    built = build_judge(settings, engine)
    assert isinstance(built, CascadeJudge)
    judge = CascadeJudge(built.first, harsh(asked), safe=0.0)
    assert graded(judge, ["I'm sorry, but I can't help with that.", "Mix flour and water."]) == [0.0, 1.0]
    assert asked == ["Mix flour and water."]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ({"kind": "rubric", "model": "org/judge"}, "the first judge is to be cheap"),
        ({"kind": "refusal", "safe": 2}, "safe"),
        ({"kind": "refusal", "safe": 0.5, "harmful": 0.5}, "safe below harmful"),
    ],
)
def test_a_first_judge_that_decides_nothing_cheaply_is_told_in_a_sentence(first: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        start_judge({"kind": "refusal", "first": first}, Any, [])  # type: ignore[arg-type]


def test_the_names_and_settings_of_both_judges_are_known() -> None:
    judge = CascadeJudge(RefusalMatcher(), numbers(), safe=0.0, harmful=1.0)
    assert judge.name.startswith("refusal-matcher, then callable:")
    assert judge.settings["safe"] == 0.0
    assert {"first", "then", "safe", "harmful"} == set(judge.settings)


def test_a_guard_gives_an_answer_that_the_first_judge_passed_without_the_other_one() -> None:
    asked: list[str] = []
    judge = CascadeJudge(CallableJudge(lambda messages, text: 0.0), harsh(asked))
    guard = Guard(tiny_model("llama"), "best_of_n", judge=judge, n=2, generation={"max_new_tokens": 4})
    assert guard.chat("Hello").finish_reason != "refusal"
    assert not asked
