"""Grammars of calls, in the forms in which real chat templates write them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from factories import tiny_tokenizer

from anchorlm.models import call_grammar, find_tools
from anchorlm.models._marks import Marks
from anchorlm.records import checked_tools
from anchorlm.tokens import ByteVocabulary, Grammars

TOKENIZER = tiny_tokenizer(bos=True)
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}},
          "required": ["city", "days"], "additionalProperties": False}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "send-mail.now")
]


@pytest.fixture(scope="module")
def forms(shared_data: Path) -> dict[str, Any]:
    """What is found in the chat templates of real models whose calls hold JSON."""
    folder = shared_data / "templates"
    if not folder.is_dir():
        pytest.skip(f"no chat templates at {folder}: they are a part of the public data")
    found = {file.stem: find_tools(TOKENIZER, file.read_text("utf-8"), {}) for file in folder.glob("*.jinja")}
    return {name: one for name, one in found.items() if one.form and one.form.kind in ("object", "named")}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_whatever_a_grammar_allows_is_read_back_as_calls_that_fit(forms: dict[str, Any], choice: Any) -> None:
    vocabulary = ByteVocabulary.from_tokenizer(TOKENIZER, stop_ids={1})
    grammars, marks, chance = Grammars(vocabulary, len(TOKENIZER), {1}), Marks(TOKENIZER, vocabulary), random.Random(7)
    use = checked_tools(TOOLS, choice)
    assert use is not None
    for name, tools in sorted(forms.items()):
        found = call_grammar(tools.form, marks, frozenset({1}), use, several=tools.several)
        assert found is not None, name
        form, ids = grammars.form(found), list[int]()
        while not form.complete(ids):
            allowed = form.allowed(ids).nonzero()[:, 0].tolist()
            if 1 in allowed:
                break
            ids.append(chance.choice(allowed))
        content, calls = tools.form.parse(marks.text(ids), use.schemas)
        assert calls, (name, marks.text(ids))
        assert content == "", name
        for called, arguments in calls:
            assert called in use.must, name
            assert json.dumps(arguments) in [f'{{"city": "{city}", "days": {days}}}' for city in ("Oslo", "Rome")
                                             for days in (1, 2)], name  # fmt: skip
    assert len(forms) >= 20
