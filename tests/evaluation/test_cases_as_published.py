from __future__ import annotations

import csv
import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from anchorlm.evaluation import load_cases
from anchorlm.records import UserError

PUBMEDQA = {
    "21645374": {
        "QUESTION": "Do mitochondria play a role in leaves?",
        "CONTEXTS": ["Leaves have holes.", "Dyes show why."],
        "LABELS": ["BACKGROUND", "RESULTS"],
        "MESHES": ["Alismataceae"],
        "YEAR": "2011",
        "reasoning_required_pred": "yes",
        "reasoning_free_pred": "yes",
        "final_decision": "yes",
        "LONG_ANSWER": "They do.",
    },
    "16418930": {"QUESTION": "Does it differ?", "CONTEXTS": ["It was measured."], "final_decision": "maybe"},
}
MMLU = [
    ["Find all c in Z_3 such that x^2 + c is a field.", "0", "1", "2", "3", "B"],
    ['Who said "Text,\nnot context"?', "Text", "Context", "Goal", "Prompt", "D"],
]
PHRASES = [
    ("According to Gran , the company has no plans to move .", "neutral"),
    ("Profit of Seppälä rose to 5 mn @ 1 EUR each .", "positive"),
    ("Sales in Finland fell by 10.5 % .", "negative"),
]


def test_pubmedqa_is_read_as_published_with_its_keys_as_ids(tmp_path: Path) -> None:
    file = tmp_path / "ori_pqal.json"
    file.write_text(json.dumps(PUBMEDQA, indent=4), encoding="utf-8")
    first, second = load_cases(file)
    assert (first.id, first.kind, first.form, first.answer) == ("21645374", "task", "label", "yes")
    assert first.labels == ("yes", "no", "maybe")
    assert first.prompt == (
        "Leaves have holes. Dyes show why.\n\nDo mitochondria play a role in leaves?\nAnswer with yes, no or maybe."
    )
    assert (second.id, second.answer) == ("16418930", "maybe")


def test_pubmedqa_of_the_hub_asks_as_the_published_file_does(tmp_path: Path) -> None:
    rows = [
        {
            "pubid": int(key),
            "question": row["QUESTION"],
            "context": {"contexts": row["CONTEXTS"], "labels": row.get("LABELS", []), "meshes": []},
            "final_decision": row["final_decision"],
        }
        for key, row in PUBMEDQA.items()
    ]
    hub, published = tmp_path / "hub.jsonl", tmp_path / "published.json"
    hub.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    published.write_text(json.dumps(PUBMEDQA), encoding="utf-8")
    pairs = zip(load_cases(hub), load_cases(published), strict=True)
    assert all((one.prompt, one.answer) == (other.prompt, other.answer) for one, other in pairs)


def test_an_object_of_answers_alone_holds_no_tasks(tmp_path: Path) -> None:
    file = tmp_path / "test_ground_truth.json"
    file.write_text(json.dumps({"12377809": "yes", "26163474": "no"}), encoding="utf-8")
    with pytest.raises(UserError, match="list of rows"):
        load_cases(file)


@pytest.mark.parametrize("header", [[], [["question", "A", "B", "C", "D", "answer"]]], ids=["headerless", "header"])
def test_mmlu_lists_its_four_options_with_a_header_or_without(tmp_path: Path, header: list[list[str]]) -> None:
    file = tmp_path / "abstract_algebra_test.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([*header, *MMLU])
    first, second = load_cases(file)
    assert (first.kind, first.form, first.answer, second.answer) == ("task", "choice", "B", "D")
    assert first.labels == ("A", "B", "C", "D")
    assert first.prompt.startswith(f"{MMLU[0][0]}\n\nA. 0\nB. 1\nC. 2\nD. 3\n")
    assert second.prompt.startswith(MMLU[1][0])


def test_real_multiple_choice_tasks_survive_the_layout_of_mmlu(shared_data: Path, tmp_path: Path) -> None:
    medqa = gzip.decompress((shared_data / "datasets" / "medagents" / "medqa_test.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in medqa.rstrip().split("\n")]
    four = [row for row in rows if "".join(row["options"])[:4] == "ABCD" and row["answer_idx"] in "ABCD"]
    cells = [[row["question"], *(row["options"][name] for name in "ABCD"), row["answer_idx"]] for row in four]
    assert len(cells) > 1000
    file = tmp_path / "professional_medicine_test.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(cells)
    assert [case.answer for case in load_cases(file)] == [row["answer_idx"] for row in four]


@pytest.mark.parametrize("row", ["What?,1,2,3,4,E", "What?,1,2,3,A", "What?,1,2,3,4,5,A"])
def test_one_row_unlike_mmlu_and_the_file_is_none_of_it(tmp_path: Path, row: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(f"Which?,1,2,3,4,A\n{row}\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column that is known"):
        load_cases(file)


def test_a_broken_row_of_mmlu_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text('Which?,1,2,3,4,A\nWhat?,"1"x,2,3,4,B\n', encoding="utf-8")
    with pytest.raises(UserError, match="Line 2 of table.csv"):
        load_cases(file)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_phrasebank_is_read_as_published(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "Sentences_AllAgree.txt"
    file.write_bytes("".join(f"{sentence}@{label}{end}" for sentence, label in PHRASES).encode(encoding))
    cases = load_cases(file)
    assert [(case.prompt.partition("\n")[0], case.answer) for case in cases] == PHRASES
    assert {case.kind for case in cases} == {"task"}
    assert {case.labels for case in cases} == {("positive", "negative", "neutral")}
    assert all(case.prompt.endswith("Answer with positive, negative or neutral.") for case in cases)


def test_lines_of_which_one_has_no_label_are_texts_in_utf_8_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "harmless.txt"
    file.write_text("Sales rose .@positive\nSeppälä rose .\n", encoding="utf-8")
    assert [case.prompt for case in load_cases(file)] == ["Sales rose .@positive", "Seppälä rose ."]
    file.write_text("Sales rose .@positive\nSeppälä rose .\n", encoding="latin-1")
    with pytest.raises(UserError, match="not UTF-8 text \\(line 2\\)"):
        load_cases(file)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numbers_in_the_phrasebank_of_the_hub_are_words(tmp_path: Path, suffix: str) -> None:
    codes = ("negative", "neutral", "positive")
    file = tmp_path / f"train.{suffix}"
    rows = [{"sentence": sentence, "label": codes.index(label)} for sentence, label in PHRASES]
    with file.open("w", encoding="utf-8", newline="") as out:
        if suffix == "csv":
            csv.writer(out).writerows([["sentence", "label"], *([row["sentence"], row["label"]] for row in rows)])
        else:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    cases = load_cases(file)
    assert [case.answer for case in cases] == [label for _, label in PHRASES]
    assert {case.form for case in cases} == {"label"}


@pytest.mark.parametrize("labels", [(0, 1), (0, 1, 2, 3), (-1, 2), ("1.0", "2.0")])
def test_sentences_with_other_numbers_are_not_taken_for_the_phrasebank(tmp_path: Path, labels: tuple[int, ...]) -> None:
    file = tmp_path / "sst2.tsv"
    file.write_text("sentence\tlabel\n" + "".join(f"film {n}\t{n}\n" for n in labels), encoding="utf-8")
    with pytest.raises(UserError, match="write them as words") as caught:
        load_cases(file)
    assert "\n" not in str(caught.value)
    assert {case.kind for case in load_cases(file, kind="harmless")} == {"harmless"}


def test_rows_left_out_as_repeated_are_counted_in_one_warning(
    shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "anchorlm"):
        load_cases(shared_data / "datasets" / "finlora" / "fiqa_test.jsonl")
        load_cases(shared_data / "datasets" / "advbench" / "advbench.csv.gz")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "Rows of fiqa_test.jsonl that repeat an earlier prompt are left out: 2."


def test_real_sentiments_survive_the_layout_of_the_phrasebank(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "datasets" / "finlora" / "fiqa_test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = {row["context"].partition("Input: ")[2].partition("\n")[0]: row["target"] for row in rows}
    published = tmp_path / "Sentences_50Agree.txt"
    published.write_bytes("\n".join(f"{text}@{label}" for text, label in texts.items()).encode("latin-1", "replace"))
    assert Counter(case.answer for case in load_cases(published)) == Counter(texts.values())
