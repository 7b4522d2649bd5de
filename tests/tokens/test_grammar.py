"""Masks of JSON schemas, held against a search through the whole vocabulary."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from factories import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.records import UserError, forced_words
from anchorlm.tokens import ByteVocabulary, Grammars

SIZE = 330
"""More rows than the tokenizer has entries."""
VOCABULARY = ByteVocabulary.from_tokenizer(
    tiny_tokenizer(310, text='{"name": "fox", "lazy": true} {"name": "dog"} '), stop_ids={1}
)
STOPS = {0, 1}
GRAMMARS = Grammars(VOCABULARY, SIZE, STOPS | {SIZE + 5})


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


WORDS = st.lists(st.text("fox dg", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


def brute(texts: list[bytes], written: bytes) -> set[int]:
    """The tokens with which an answer can still become one of some texts, and those that may end it."""
    fits = {
        token
        for token in range(SIZE)
        if (data := VOCABULARY.token_bytes(token)) and any(text.startswith(written + data) for text in texts)
    }
    return fits | (STOPS if written in texts else set())


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["name", "lazy", "x"]), WORDS, min_size=1, max_size=2), st.randoms())
def test_a_mask_is_what_a_search_through_the_vocabulary_finds(values: dict[str, list[str]], random: Any) -> None:
    schema = {"type": "object", "properties": {name: {"enum": words} for name, words in values.items()},
              "required": list(values), "additionalProperties": False}  # fmt: skip
    texts = [json.dumps(dict(zip(values, chosen, strict=True))).encode() for chosen in product(*values.values())]
    form, ids = GRAMMARS.form(as_format(schema)), list[int]()
    while True:
        written = VOCABULARY.decode(ids)
        found = {token for token, may in enumerate(form.allowed(ids).tolist()) if may}
        forced, wanted = form.forced(ids), brute(texts, written)
        # What is forced is written as the tokenizer writes it.
        assert found == wanted or (found < wanted and found == {VOCABULARY.encode(forced)[0]})
        whole = written in texts
        assert form.complete(ids) == whole
        starts = {text[len(written) : len(written) + 1] for text in texts if text.startswith(written)}
        assert bool(forced) == (not whole and len(starts) == 1)
        if whole:
            return
        ids.append(random.choice(sorted(found)))


@settings(deadline=None)
@given(st.randoms(), st.integers(1, 6))
def test_an_answer_that_is_shortened_and_written_on_is_read_as_a_new_one(random: Any, keep: int) -> None:
    asked = as_format({"type": "array", "items": {"enum": ["fox", "dog", "good"]}, "maxItems": 3})
    form, ids = GRAMMARS.form(asked), list[int]()
    for _ in range(3):
        for _ in range(4):
            if form.complete(ids):
                break
            allowed = form.allowed(ids)
            assert allowed.equal(GRAMMARS.form(asked).allowed(ids))
            ids = [*ids, random.choice([t for t in allowed.nonzero()[:, 0].tolist() if t not in STOPS])]
        other = form.fork()
        ids = ids[:keep]
        assert form.allowed(ids).equal(other.allowed(ids))


def test_a_number_may_end_or_go_on() -> None:
    form = GRAMMARS.form(as_format({"type": "integer"}))
    ids = VOCABULARY.encode(b"1")
    allowed = form.allowed(ids)
    assert all(allowed[stop] for stop in STOPS)
    assert allowed[VOCABULARY.encode(b"2")[0]]
    assert not form.complete(ids)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nope"}, "nope"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "https://example.org/x"}, "example.org"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_one_sentence(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="schema of response_format cannot be used") as caught:
        GRAMMARS.form(as_format(schema))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_without_an_end_and_characters_that_no_token_has_are_told() -> None:
    letters = ByteVocabulary.from_tokenizer(_only_letters())
    form = Grammars(letters, letters.size, letters.stop).form({"type": "json_object"})
    with pytest.raises(UserError, match="characters that the model's vocabulary lacks"):
        form.allowed([])
    with pytest.raises(UserError, match="its schema has no end"):
        GRAMMARS.form(as_format({"$ref": "#"})).allowed([])


def _only_letters() -> Any:
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def test_without_the_library_the_sentence_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'anchorlm\[schema\]'"):
        Grammars(VOCABULARY, SIZE, STOPS).form({"type": "json_object"})


def test_the_words_of_a_schema_are_all_that_it_may_write() -> None:
    inner = {"type": "object", "properties": {"deep": {"const": {"k": "value"}}}}
    schema = {"title": "not written", "properties": {"a": {"enum": ["x", 1, None]}, "b": {"pattern": "^Sure"},
              "c": {"items": [inner]}, "d": {"anyOf": [{"const": "y"}]}}, "required": ["a", "e"]}  # fmt: skip
    assert set(forced_words(as_format(schema)).split("\n")) == {
        "a", "b", "c", "d", "e", "x", "^Sure", "deep", "k", "value", "y",
    }  # fmt: skip
    assert forced_words({"type": "json_object"}) == ""
