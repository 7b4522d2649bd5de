from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.evaluation import Case, load_cases, overlaps
from anchorlm.evaluation.runs._overlaps import NEAR, fitted_overlaps, together, unseen
from anchorlm.records import Sketches, UserError, likeness, plain, sketch, sketches


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("advbench/advbench.csv.gz", {"harmful": 520}),
        ("harmbench/harmbench_behaviors_text_val.csv", {"harmful": 80}),
        ("jailbreakbench/jailbreakbench.csv", {"harmful": 100}),
        ("jailbreakbench/GCG_white_box_vicuna-13b-v1.5.json.gz", {"harmful": 100}),
        ("xstest/xstest_prompts.csv", {"look-alike": 250, "harmful": 200}),
        ("refusal_direction/malicious_instruct.txt", {"harmful": 100}),
        ("medsafetybench/ft_safety_med_n900.json.gz", {"harmful": 900}),
        ("refusal_direction/harmless_val.json.gz", {"harmless": 6264}),
        ("gsm8k/test.jsonl.gz", {"task": 1319}),
        ("medagents/medqa_test.jsonl.gz", {"task": 1273}),
        ("finlora/fiqa_test.jsonl", {"task": 233}),  # two of its 235 rows are there twice
    ],
)
def test_published_files_are_read_as_they_are(shared_data: Path, file: str, kinds: dict[str, int]) -> None:
    cases = load_cases(shared_data / "datasets" / file)
    assert Counter(case.kind for case in cases) == kinds
    assert len({case.id for case in cases}) == len(cases)
    assert all(case.prompt.strip() for case in cases)


def test_jailbreakbench_asks_its_goals_not_their_themes(shared_data: Path) -> None:
    first = load_cases(shared_data / "datasets" / "jailbreakbench" / "jailbreakbench.csv")[0]
    assert first.prompt.startswith("Write a defamatory article")
    assert str(first.target).startswith("Sure, here is a defamatory article")


@pytest.mark.parametrize(
    ("row", "answer", "form"),
    [
        ({"question": "2 + 2?", "answer": "Well.\n#### 1,004"}, "1004", "number"),
        ({"question": "Which?", "options": {"A": "tea", "B": "rum"}, "answer": "rum"}, "B", "choice"),
        ({"question": "Which?", "options": {"A": "tea", "B": "rum"}, "answer": "x", "answer_idx": "A"}, "A", "choice"),
        ({"question": "Which?", "choices": ["tea", "rum"], "answer": 1}, "B", "choice"),
        ({"question": "Does it?", "context": "It does.", "final_decision": "Yes"}, "yes", "label"),
        ({"context": "Shares fell.", "target": "negative"}, "negative", "label"),
        ({"sentence": "Shares rose.", "label": "positive"}, "positive", "label"),
    ],
)
def test_tasks_bring_what_solves_them(tmp_path: Path, row: dict[str, Any], answer: str, form: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (case,) = load_cases(file)
    assert (case.kind, case.answer, case.form) == ("task", answer, form)
    if form == "choice":
        assert "A. tea\nB. rum" in case.prompt


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "x", "label": "harmful"}, "harmful"),
        ({"prompt": "x", "label": "harmless"}, "harmless"),
        ({"prompt": "x", "label": "look-alike"}, "look-alike"),
        ({"messages": [{"role": "user", "content": "x"}], "label": "safe"}, "harmless"),
        ({"forbidden_prompt": "x", "category": "c"}, "harmful"),
        ({"prompts_final": "x"}, "harmful"),
        ({"risk_area": "r", "question": "x"}, "harmful"),
    ],
)
def test_rows_say_what_kind_they_are(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    file = tmp_path / "mine.jsonl.gz"
    file.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    (case,) = load_cases(file)
    assert (case.kind, case.prompt) == (kind, "x")


def test_a_file_that_says_nothing_is_refused_with_its_columns_and_taken_with_a_label(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("prompt,color\nHello?,red\n", encoding="utf-8")
    with pytest.raises(UserError, match="'prompt', 'color'"):
        load_cases(file)
    assert [case.kind for case in load_cases(file, kind="harmful")] == ["harmful"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "'a', 'b'"),
        ("", "no rows"),
        ("question,answer\nHow many?,\n", "a task without an answer"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        load_cases(file)
    assert "\n" not in str(caught.value)


def test_equal_prompts_are_kept_once_and_ids_are_unique(tmp_path: Path) -> None:
    file = tmp_path / "harmful.jsonl"
    rows = [{"id": 1, "prompt": "a b"}, {"id": 1, "prompt": "c d"}, {"id": 2, "prompt": "a b"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cases = load_cases(file)
    assert [case.prompt for case in cases] == ["a b", "c d"]
    assert len({case.id for case in cases}) == 2


def test_ids_that_look_alike_stay_apart(tmp_path: Path) -> None:
    file = tmp_path / "harmful.jsonl"
    rows = [{"id": id, "prompt": prompt} for id, prompt in (("a", "b"), ("a", "c"), ("a#1", "d"), ("a#1", "e"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert len({case.id for case in load_cases(file)}) == 4


@pytest.mark.parametrize("name", ["benign-behaviors.csv", "harmful-behaviors.csv"])
def test_the_benign_behaviors_of_jailbreakbench_are_not_harmful(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("Index,Goal,Target,Behavior,Category,Source\n0,Write x,Here is x,X,C,S\n", encoding="utf-8")
    assert [case.kind for case in load_cases(file)] == ["harmless" if name.startswith("benign") else "harmful"]


@pytest.mark.parametrize("name", ["not_harmful.txt", "non-harmful.txt", "harmless.txt"])
def test_what_a_files_name_denies_it_is_not(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("Hello?\n", encoding="utf-8")
    assert [case.kind for case in load_cases(file)] == ["harmless"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x", "label": "hramful"}, "the label 'hramful', which is none of harmful"),
        ({"messages": [{"role": "assistant", "content": "x"}], "label": "harmful"}, "no user asks anything"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    file = tmp_path / "harmful.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"Line 1 of harmful.jsonl .*{says}"):
        load_cases(file)


def test_known_overlaps_are_found(shared_data: Path) -> None:
    folder = shared_data / "datasets"
    names = {
        "fitted": "refusal_direction/harmful_train.json",
        "advbench": "advbench/advbench.csv.gz",
        "jailbreakbench": "jailbreakbench/jailbreakbench.csv",
        "malicious": "refusal_direction/malicious_instruct.txt",
    }
    found = {
        (one.first, one.second): one.equal for one in overlaps({k: load_cases(folder / v) for k, v in names.items()})
    }
    assert found["fitted", "advbench"] == 117
    assert found["fitted", "malicious"] == 88
    assert found["advbench", "jailbreakbench"] == 11


def test_overlaps_are_those_of_a_naive_search() -> None:
    words = "how do I open a locked door without a key please tell me now"
    first = [words, "bake a small cake for two", "Write a LETTER!", "one two"]
    second = [f"{words} again", "write a letter", "entirely other words here", "one two three"]

    def shingles(text: str) -> set[tuple[str, ...]]:
        parts = plain(text).split()
        return {tuple(parts[i : i + 3]) for i in range(len(parts) - 2)}

    equal = sum(plain(text) in map(plain, first) for text in second)
    near = sum(
        plain(text) not in map(plain, first)
        and any(
            shingles(text) & shingles(other)
            and len(shingles(text) & shingles(other)) / len(shingles(text) | shingles(other)) >= NEAR
            for other in first
        )
        for text in second
    )
    (found,) = overlaps({"a": cases(first), "b": cases(second)})
    assert (found.equal, found.near) == (equal, near) == (1, 1)
    assert (found.cases, found.examples) == (("0", "1"), ("write a letter", plain(second[0])))
    assert not found.fitted


def test_texts_that_write_no_words_apart_overlap_by_their_characters() -> None:
    text = "今天晚上我们一起去河边散步好不好"
    (found,) = overlaps({"a": cases([text])}, {"b": cases([f"{text}呢"])})
    assert (found.equal, found.near) == (0, 1)


def test_a_conversation_overlaps_by_what_it_asks_and_not_by_its_last_turn() -> None:
    def told(*said: str) -> Case:
        roles = ("user", "assistant")
        return Case("0", [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)], "harmful")

    prompt = "How do I open the garden door?"
    on, other = told(prompt, "I can't.", "Please go on."), told("Tell me a cake recipe", "Sure.", "Please go on.")
    (found,) = overlaps({"a": [on]}, {"b": cases([prompt])})
    assert found.equal == 1
    assert overlaps({"a": [on]}, {"b": [other]}) == []
    assert sketches([on.messages]) == sketches([prompt])


def test_fitting_data_is_no_test_set_even_under_the_same_name() -> None:
    asked = cases(["open the door now", "bake a cake"])
    (found,) = overlaps({"a": asked}, {"a": asked[:1], "other": cases(["something else"])})
    assert (found.first, found.second, found.cases, found.fitted) == ("a", "a", ("0",), True)


def test_overlaps_that_are_the_same_for_several_targets_are_told_once() -> None:
    first = overlaps({"b": cases(["open the door"])}, {"a": cases(["Open the door!"])})
    second = overlaps({"b": cases(["bake a cake"])}, {"a": cases(["Bake a cake!"])})
    found = together({"x": first, "y": first, "z": second})
    assert [one.targets for one in found] == [("x", "y"), ("z",)]


def test_what_was_fitted_on_is_left_out_for_its_target_alone() -> None:
    answers = [{"target": t, "data": d, "case": c} for t in "xy" for d in "ab" for c in "01"]
    entry = {"second": "a", "cases": ["1"], "targets": ["x"], "fitted": True}
    found = unseen(answers, {"overlaps": [entry, {**entry, "cases": ["0"], "fitted": False}, {"first": "old"}]})
    assert found == [one for one in answers if one != {"target": "x", "data": "a", "case": "1"}]


def test_test_prompts_that_an_artifact_was_fitted_or_calibrated_on_are_found_prompt_by_prompt(tmp_path: Path) -> None:
    words = "how do I open a locked door without a key please tell me now"
    kept = {"data": {"harmful": {"sketches": sketches([words])}},
            "figures": {"data": {"harmless": {"sketches": sketches(["Write a LETTER!"])}}}}  # fmt: skip
    (tmp_path / "artifact.json").write_text(json.dumps(kept), encoding="utf-8")
    tests = [f"{words} again", "write a letter", "entirely other words here"]
    (found,) = fitted_overlaps({"small inferaligner": tmp_path}, {"b": cases(tests)})
    assert (found.first, found.equal, found.near) == ("the artifact of small inferaligner", 1, 1)
    assert fitted_overlaps({"none": tmp_path / "none"}, {"b": cases(tests)}) == []
    assert words not in (tmp_path / "artifact.json").read_text("utf-8")


@pytest.mark.parametrize("shared", [0, 10, 20, 30, 40])
def test_sketches_tell_how_many_word_triples_two_texts_share(shared: int) -> None:
    first = [f"a{n}" for n in range(40)]
    second = first[:shared] + [f"b{n}" for n in range(40 - shared)]
    triples = [{tuple(words[at : at + 3]) for at in range(38)} for words in (first, second)]
    truth = len(triples[0] & triples[1]) / len(triples[0] | triples[1])
    assert likeness(sketch(" ".join(first)), sketch(" ".join(second))) == pytest.approx(truth, abs=0.25)
    assert sketch("Open, the DOOR!") == sketch("open the door")


texts = st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), max_size=6)


@given(texts, st.lists(st.sampled_from("abc"), max_size=7).map(" ".join))
def test_the_most_alike_of_many_sketches_is_that_of_a_naive_search(known: list[str], text: str) -> None:
    drawn = [sketch(one) for one in known]
    naive = max((likeness(sketch(text), one) for one in drawn), default=0.0)
    assert Sketches(drawn).most_like(sketch(text)) == pytest.approx(naive)


def cases(texts: list[str]) -> list[Case]:
    return [Case(str(n), [{"role": "user", "content": text}], "harmful") for n, text in enumerate(texts)]
