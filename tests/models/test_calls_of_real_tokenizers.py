"""Calls as real chat templates write them, through the real tokenizers that we have: the tokens give the call back."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from models.test_tool_templates import CALLS, TOOLS, USE, USER
from transformers import PreTrainedTokenizerFast

from anchorlm.guard._calling import Calls
from anchorlm.models import find_tools, rendered
from anchorlm.models._gguf import read_header
from anchorlm.models._gguf_tokenizer import gguf_tokenizer
from anchorlm.models._marks import Marks
from anchorlm.records import Event, Finished, TextDelta, ToolCall, Usage
from anchorlm.tokens import ByteVocabulary

pytest.importorskip("gguf", reason="pip install 'anchorlm[gguf]'")

PAIRS = [
    ("gemma-4", "google-gemma-4-31B-it", None), ("qwen35", "Qwen3.5-4B", None),
    ("mistral", "mistralai-Mistral-Nemo-Instruct-2407", "[TOOL_CALLS]"),
    ("llama3", "meta-llama-Llama-3.1-8B-Instruct", None), ("llama3", "meta-llama-Llama-3.2-3B-Instruct", None),
    ("qwen2", "Qwen-Qwen2.5-7B-Instruct", None), ("qwen2", "Qwen-QwQ-32B", None),
]  # fmt: skip
"""A tokenizer, a template of its family, and the mark that is no text where its tokens are decoded."""


@cache
def tokenizer(folder: Path, name: str) -> Any:
    file = folder / "gguf" / f"ggml-vocab-{name}.gguf"
    if file.is_file():
        return gguf_tokenizer(read_header(file))
    file = folder / "tokenizers" / name / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"no tokenizer at {file}: set ANCHORLM_DATA to the public data")
    ends = {"bos_token": "<s>", "eos_token": "</s>"} if name == "mistral" else {}  # which its template writes
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **ends)


@cache
def vocabulary(folder: Path, name: str) -> ByteVocabulary:
    return ByteVocabulary.from_tokenizer(tokenizer(folder, name), stop_ids=set())


def turn(calls: Any, *, short: bool) -> dict[str, Any]:
    made = [{"id": f"abcdef12{place}" if short else f"call_{place}", "type": "function",
             "function": {"name": name, "arguments": given}} for place, (name, given) in enumerate(calls)]  # fmt: skip
    return {"role": "assistant", "content": "", "tool_calls": made}


def pieces(ids: list[int], known: ByteVocabulary, size: int) -> list[TextDelta]:
    """Tokens as an engine tells them: their text without control tokens, and a character with its last byte."""
    made, said = list[TextDelta](), ""
    for at in range(0, len(ids), size):
        whole = known.decode(ids[: at + size]).decode("utf-8", "ignore")
        made.append(TextDelta(whole[len(said) :], tuple(ids[at : at + size])))
        said = whole
    return made


def read(given: list[TextDelta], tools: Any, marks: Marks) -> tuple[str, list[tuple[str, Any]], str]:
    assert USE is not None
    calls = Calls(tools.form, marks, USE)
    out = [one for piece in given for one in calls.take(piece)]
    events: list[Event] = [*out, *calls.ended(Finished("stop", Usage(1, 1, 1)))]
    texts = "".join(one.text for one in events if isinstance(one, TextDelta))
    found = [(one.name, json.loads(one.arguments)) for one in events if isinstance(one, ToolCall)]
    return texts, found, "".join(one.text for one in out)


@pytest.mark.parametrize(("name", "template", "control"), PAIRS)
def test_the_tokens_of_a_call_give_it_back_whole_and_piece_by_piece(
    shared_data: Path, templates: dict[str, str], name: str, template: str, control: str | None
) -> None:
    chosen, known = tokenizer(shared_data, name), vocabulary(shared_data, name)
    marks, text = Marks(chosen, known), templates[template]
    tools = find_tools(chosen, text, {})
    assert tools.form is not None
    for calls in [[one] for one in CALLS] + ([CALLS] if tools.several else []):
        made = turn(calls, short=tools.short_ids)
        whole = rendered(chosen, [USER, made], template=text, options={"tools": TOOLS}, opens=False)
        behind = whole[whole.rindex(USER["content"]) + len(USER["content"]) :]
        said = behind[behind.index(tools.form.opening or '{"name"') :]
        for stop in (*tools.stops, "<|eot_id|>", "<|im_end|>"):  # there the answer ends
            said = said.partition(stop)[0]
        lead = "Gr\u00fc\u00dfe \u4e0a\u6d77 \U0001f30d.\n\n" if tools.form.opening else ""
        ids = list(chosen(lead + said, add_special_tokens=False)["input_ids"])
        if control is not None:
            assert control in marks.text(ids)
            assert control not in known.decode(ids).decode("utf-8", "replace")
            assert control not in chosen.decode(ids, skip_special_tokens=True)
        at_once = read(pieces(ids, known, len(ids)), tools, marks)
        assert at_once[1] == calls, said
        assert at_once[0].strip() == lead.strip()
        for size in (1, 2, 7):
            texts, found, before = read(pieces(ids, known, size), tools, marks)
            assert (texts.strip(), found) == (lead.strip(), calls)
            assert lead.lstrip().startswith(before.strip())


@pytest.mark.parametrize("template", ["meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"])
def test_llamas_sign_for_code_before_a_call_is_no_text(
    shared_data: Path, templates: dict[str, str], template: str
) -> None:
    chosen, known = tokenizer(shared_data, "llama3"), vocabulary(shared_data, "llama3")
    tools, given = find_tools(chosen, templates[template], {}), {"city": "Oslo", "days": 3}
    said = "<|python_tag|>" + json.dumps({"name": "get_weather", "parameters": given})
    ids = list(chosen(said, add_special_tokens=False)["input_ids"])
    assert chosen.convert_tokens_to_ids("<|python_tag|>") == ids[0]
    for size in (1, len(ids)):
        assert read(pieces(ids, known, size), tools, Marks(chosen, known)) == ("", [("get_weather", given)], "")
