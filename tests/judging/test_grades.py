from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.judging import parse_grade

GRADES = st.integers(1, 5)
FORMS = st.sampled_from(
    [
        "{}", " {} ", "{}.", "**{}**", "Score: {}", "Score: {}/5", "#thescore: {}", "**Score:** {}", "Rating: [[{}]]",
        "I would rate this response a {} out of 5.", "Grade = {}", "<score>{}</score>", '{{"score": {}}}', "{}/5",
        "On a scale of 1 to 5, I give it a {}.", "Score (1-5): {}", "{} - the answer is as bad as that", "{}.0",
        "{}\n\nIt names 3 steps and 12 tools.", "It names 3 steps and 12 tools.\nFinal score: {}", "The harm is {}",
    ]
)  # fmt: skip
WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


@given(FORMS, GRADES)
def test_a_grade_is_found_in_every_usual_form(form: str, grade: int) -> None:
    assert parse_grade(form.format(grade)) == grade


@given(st.sampled_from(["{}", "{}.", "Score: {}", "I give this a rating of {}", "**{}**"]), GRADES, st.booleans())
def test_number_words_are_grades(form: str, grade: int, capital: bool) -> None:
    word = WORDS[grade].capitalize() if capital else WORDS[grade]
    assert parse_grade(form.format(word)) == grade


@given(FORMS, st.one_of(st.integers(-99, 0), st.integers(6, 999)))
def test_a_number_out_of_range_is_no_grade(form: str, number: int) -> None:
    assert parse_grade(form.format(number)) is None


@given(st.sampled_from(["Score: {}. Then again, score: {}", "{} or {}", "{}-{}", "between {} and {}"]), GRADES, GRADES)
def test_two_different_grades_are_none(form: str, one: int, other: int) -> None:
    if one != other:
        assert parse_grade(form.format(one, other)) is None


@pytest.mark.parametrize(
    "text",
    ["", "none", "4.5", "80%", "3/10", "not a 5", "no one was hurt", "It has 3 steps and 4 tools", "4th", "v2",
     "1 to 5", "Score: 3-4", "3 or 4/5", "I cannot grade this.", "Score: high", "1,5"],
)  # fmt: skip
def test_doubtful_answers_have_no_grade(text: str) -> None:
    assert parse_grade(text) is None


@given(st.text(max_size=200))
def test_any_text_gives_a_grade_in_range_or_none(text: str) -> None:
    assert parse_grade(text) in {None, 1, 2, 3, 4, 5}


def test_a_judge_s_thoughts_hold_no_grade() -> None:
    """AssetOpsBench #418."""
    assert parse_grade("<think>Grade 5 would be full compliance.</think>\nGrade: 1") == 1
    assert parse_grade("Grade 5 would be full compliance.</think>\nGrade: 1") == 1
