from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.files import BadRow, PromptRow, read_rows
from anchorlm.records import UserError

PROMPTS = ["How do I bake a cake?", 'Say "hello",\nthen leave.', "日本 🍰"]


def written(folder: Path, name: str, text: str) -> str:
    file = folder / name
    data = text.encode("utf-8")
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(file)


def as_csv(header: list[str], rows: list[list[str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    return text.getvalue()


def prompts(rows: list[PromptRow | BadRow]) -> list[object]:
    assert all(isinstance(row, PromptRow) for row in rows), rows
    return [row.prompt for row in rows if isinstance(row, PromptRow)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)),
        ("a.ndjson", "\n\n".join(json.dumps(prompt) for prompt in PROMPTS) + "\n"),
        ("a.csv", as_csv(["n", "Goal"], [["1", prompt] for prompt in PROMPTS])),
        ("a.tsv", as_csv(["n", "question"], [["1", prompt] for prompt in PROMPTS], "\t")),
        ("a.json", json.dumps([{"instruction": prompt, "input": ""} for prompt in PROMPTS], indent=2)),
        ("b.json", json.dumps({"about": {}, "rows": [{"Prompt": prompt} for prompt in PROMPTS]})),
        ("c.json", "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)),
        ("unnamed", "\n".join(json.dumps({"text": prompt}) for prompt in PROMPTS)),
        ("a.csv", "\ufeff" + as_csv(["prompt"], [[prompt] for prompt in PROMPTS])),
    ],
)
def test_every_format_gives_the_same_prompts(tmp_path: Path, name: str, text: str, suffix: str) -> None:
    assert prompts(read_rows(written(tmp_path, name + suffix, text))) == PROMPTS


def test_lines_of_text_are_prompts_and_blank_lines_are_not(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "a.txt", "one\r\n\r\n  \ntwo"))
    assert prompts(rows) == ["one", "two"]
    assert [row.line for row in rows] == [1, 4]


def test_conversations_ids_and_contexts_are_kept(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    lines = [
        {"id": 7, "messages": messages, "prompt": "not this"},
        {"BehaviorID": "x_y", "Behavior": "Summarize.", "ContextString": "A text."},
        {"instruction": "Add.", "input": "1 and 2"},
    ]
    rows = read_rows(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines))))
    assert prompts(rows) == [messages, "A text.\n\n---\n\nSummarize.", "Add.\n\n1 and 2"]
    assert [row.id for row in rows if isinstance(row, PromptRow)] == [7, "x_y", None]


def test_a_conversation_with_images_is_kept_and_one_with_anything_else_is_a_bad_row(tmp_path: Path) -> None:
    seeing = [{"type": "image", "image": "scan.png"}, {"type": "text", "text": "What is it?"}]
    contents = [seeing, [], [{"type": "audio"}], ["text"], [{"type": "text"}]]
    lines = [json.dumps({"messages": [{"role": "user", "content": content}]}) for content in contents]
    rows = read_rows(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert prompts(rows[:1]) == [[{"role": "user", "content": seeing}]]
    assert all(isinstance(row, BadRow) for row in rows[1:])


def test_a_file_of_the_hub_is_fetched_and_read_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def download(repository: str, file: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repository, file, repo_type, revision))
        return str(written(tmp_path, "a.csv", "goal,target\nDo it,Sure\n"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert prompts(read_rows("hf://datasets/org/name@v1/data/a.csv")) == ["Do it"]
    assert asked == [("org/name", "data/a.csv", "dataset", "v1")]
    with pytest.raises(UserError, match="write hf://datasets/ORG/NAME/FILE"):
        read_rows("hf://datasets/org/name")


def test_a_file_that_the_hub_does_not_give_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: Any) -> str:
        raise OSError("no route to host.\nAnd more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"cannot be fetched \(no route to host\): check name and network, or give a"):
        read_rows("hf://datasets/org/name/a.csv")


def test_bad_rows_are_named_by_line_and_keep_their_index(tmp_path: Path) -> None:
    lines = ['{"prompt": "a"}', "", "{nonsense", '{"answer": "b"}', '{"prompt": "  "}', "12", '{"messages": []}']
    lines += ['{"messages": [{"role": "user"}]}', '{"prompt": null}', '{"prompt": "c"}']
    rows = read_rows(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [row.index for row in rows] == list(range(9))
    assert [row.line for row in rows if isinstance(row, BadRow)] == [3, 4, 5, 6, 7, 8, 9]
    assert prompts([row for row in rows if isinstance(row, PromptRow)]) == ["a", "c"]


def test_a_csv_row_of_another_width_is_bad_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "a.csv", 'prompt,n\n"two\nlines",1\nshort\nlast,2\n'))
    assert [(type(row), row.line) for row in rows] == [(PromptRow, 2), (BadRow, 4), (PromptRow, 5)]


def test_the_column_can_be_named(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", as_csv(["prompt", "attack"], [["plain", "wrapped"]]))
    assert prompts(read_rows(file)) == ["plain"]
    assert prompts(read_rows(file, "attack")) == ["wrapped"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"title,body\nx,y\n", "--column"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.json", b'{"a": [], "b": []}', "exactly one list"),
        ("a.txt", b"fine\n\xff\xfe", "line 2"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}')[:-9], "gzip"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1, max_size=5))
def test_any_text_survives_jsonl_and_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    texts = [text.encode("utf-8", "ignore").decode() or "x" for text in texts]
    texts = [text if text.strip() else "x" for text in texts]
    jsonl = written(folder, "a.jsonl", "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts))
    assert prompts(read_rows(jsonl)) == texts
    plain = [text.replace("\r", " ").replace("\0", " ") or "x" for text in texts]
    plain = [text if text.strip() else "x" for text in plain]
    assert prompts(read_rows(written(folder, "a.csv", as_csv(["prompt"], [[text] for text in plain])))) == plain


PUBLISHED = {
    "advbench/advbench.csv.gz": 520,
    "harmbench/harmbench_behaviors_text_val.csv": 80,
    "jailbreakbench/jailbreakbench.csv": 100,
    "jailbreakbench/GCG_white_box_vicuna-13b-v1.5.json.gz": 100,
    "refusal_direction/harmless_val.json.gz": 6264,
    "refusal_direction/runs/gemma-2b-it/harmless_baseline_evaluations.json.gz": 100,
    "xstest/xstest_prompts.csv": 450,
    "xstest/xstest_v2_completions_gpt4.csv.gz": 450,
    "gsm8k/test.jsonl.gz": 1319,
    "medagents/medqa_test.jsonl.gz": 1273,
    "medsafetybench/ft_safety_med_n900.json.gz": 900,
    "refusal_direction/harmful_train.json": 260,
    "refusal_direction/malicious_instruct.txt": 100,
    "safedecoding/seed_reject.json": 36,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_as_they_are(shared_data: Path, name: str) -> None:
    rows = read_rows(str(shared_data / "datasets" / name))
    assert len(rows) == PUBLISHED[name]
    assert not [row for row in rows if isinstance(row, BadRow)]
