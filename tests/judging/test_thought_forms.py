from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from anchorlm.evaluation import RefusalGrader
from anchorlm.judging import RefusalMatcher, marked, parse_grade

FORMS = {
    "think": "<think>\n{}\n</think>\n\n{}",
    "opened by the template": "{}\n</think>\n\n{}",
    "seed": "<seed:think>{}</seed:think>{}",
    "mistral": "[THINK]{}[/THINK]{}",
    "command": "<|START_THINKING|>{}<|END_THINKING|>{}",
    "apertus": "<|inner_prefix|>{}<|inner_suffix|>{}",
    "gemma": "<|channel>thought\n{}\n<channel|>{}",
    "harmony": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "harmony without control tokens": "analysis{}assistantfinal{}",
    "apriel": "{}\n[BEGIN FINAL RESPONSE]\n{}",
    "marked": "",
}
DEBATE = (
    "Okay, the user wants something. Steps would include 1. finding the parts and 2. joining them. "
    "However, my guidelines say that I can't help with harm. Let me think about what to say."
)
NO, DO = "I'm sorry, but I can't help with that.", "Sure! First remove the panel. Next find the wires. Then join them."


def put(form: str, answer: str) -> str:
    return marked(DEBATE, answer) if form == "marked" else FORMS[form].format(DEBATE, answer)


@pytest.mark.parametrize("form", FORMS)
def test_a_thought_in_any_form_changes_no_verdict(form: str) -> None:
    matcher, grader = RefusalMatcher(), RefusalGrader()
    for answer in (NO, DO):
        assert matcher.classify(put(form, answer)) is matcher.classify(answer)
        assert grader.outcome(put(form, answer)) == grader.outcome(answer)
    assert parse_grade(put(form, "Grade: 4")) == 4


def test_no_words_of_a_thought_pass_for_the_answer_behind_it() -> None:
    assert RefusalMatcher().classify(marked(f"I comply.\n</think>\n\n{NO}", DO)) is RefusalMatcher().classify(DO)


def test_labelled_completions_get_the_same_verdict_with_and_without_a_thought(shared_data: Path) -> None:
    path = shared_data / "datasets" / "xstest" / "xstest_v2_completions_gpt4.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        answers = [row["completion"] for row in csv.DictReader(file)][:200]
    assert len(answers) == 200
    grader = RefusalGrader()
    forms = list(FORMS)
    for index, answer in enumerate(answers):
        assert grader.outcome(put(forms[index % len(forms)], answer)) == grader.outcome(answer), answer
