from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.files import Journal, read_journal
from anchorlm.records import UserError

RECORDS = [{"n": 1, "text": "a\nb\u2028c"}, {"n": 2, "text": "日本 🍰"}, {"n": 3, "text": ""}]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for record in RECORDS:
            journal.write(record)
            assert list(read_journal(path))[-1] == record
    with Journal(path) as journal:
        assert journal.records == RECORDS


@given(st.data())
def test_a_cut_anywhere_costs_the_cut_line_alone(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journals") / "journal.jsonl"
    whole = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = RECORDS[: whole[:cut].count(b"\n")]
    assert list(read_journal(path)) == kept
    with Journal(path) as journal:
        assert journal.records == kept
        journal.write({"n": 4})
    assert list(read_journal(path)) == [*kept, {"n": 4}]


def test_lines_of_somebody_else_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 1}\nmy notes\n', encoding="utf-8")
    with pytest.raises(UserError, match="Line 2"):
        Journal(path)
    assert path.read_text("utf-8") == '{"n": 1}\nmy notes\n'


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks of this kind on Windows")
def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl"), pytest.raises(UserError, match="Another run"):
        Journal(tmp_path / "journal.jsonl")


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "none" / "journal.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_journal(tmp_path / "none.jsonl"))
