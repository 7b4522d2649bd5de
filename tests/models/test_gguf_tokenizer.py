"""The tokenizers that GGUF files bring, against vectors that the originals were checked with (llama.cpp's)."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from anchorlm.models._gguf import Header, read_header
from anchorlm.models._gguf_tokenizer import gguf_tokenizer
from anchorlm.records import UserError

DATA = Path(os.environ.get("ANCHORLM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
pytest.importorskip("gguf", reason="pip install 'anchorlm[gguf]'")
shared = pytest.mark.skipif(
    not (DATA / "gguf").is_dir(), reason=f"no vocabularies at {DATA / 'gguf'}; set ANCHORLM_DATA"
)


def vectors(stem: Path) -> list[tuple[str, list[int]]]:
    texts = Path(f"{stem}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    rows = Path(f"{stem}.out").read_text("utf-8").split("\n")
    return [(text, [int(one) for one in row.split()]) for text, row in zip(texts, rows, strict=False)]


@cache
def of_file(name: str) -> Any:
    return gguf_tokenizer(read_header(DATA / "gguf" / f"ggml-vocab-{name}.gguf"))


def of_json(folder: str, pre: str) -> Any:
    """As a GGUF file would carry a byte-level tokenizer that is there as tokenizer.json."""
    known = json.loads((DATA / "tokenizers" / folder / "tokenizer.json").read_text("utf-8"))
    index = {**known["model"]["vocab"], **{one["content"]: one["id"] for one in known["added_tokens"]}}
    tokens = [f"<|hole_{place}|>" for place in range(max(index.values()) + 1)]
    for token, place in index.items():
        tokens[place] = token
    kinds = [1] * len(tokens)
    for one in known["added_tokens"]:
        kinds[one["id"]] = 3 if one["special"] else 4
    merges = [one if isinstance(one, str) else " ".join(one) for one in known["model"]["merges"]]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}
    return gguf_tokenizer(Header(Path(folder), {f"tokenizer.ggml.{key}": one for key, one in values.items()}, {}, None))


@shared
@pytest.mark.parametrize("name", ["gemma-4", "llama-spm", "phi-3", "qwen35"])
def test_the_files_tokenizer_gives_the_ids_of_the_original(name: str) -> None:
    tokenizer = of_file(name)
    rows = vectors(DATA / "gguf" / f"ggml-vocab-{name}.gguf")
    assert len(rows) > 40
    for text, ids in rows:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, repr(text)


@shared
@pytest.mark.parametrize(
    ("folder", "pre", "name"),
    [("gpt2", "gpt-2", "gpt-2"), ("llama3", "llama-bpe", "llama-bpe"), ("qwen2", "qwen2", "qwen2")],
)
def test_words_are_cut_as_the_name_in_the_file_says(folder: str, pre: str, name: str) -> None:
    tokenizer = of_json(folder, pre)
    for text, ids in vectors(DATA / "tokenizers" / "conformance" / f"ggml-vocab-{name}.gguf"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, repr(text)


@shared
@pytest.mark.parametrize("name", ["gemma-4", "llama-spm", "phi-3", "qwen35"])
def test_every_text_comes_back_from_its_ids(name: str) -> None:
    tokenizer = of_file(name)
    for text, ids in vectors(DATA / "gguf" / f"ggml-vocab-{name}.gguf"):
        said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert said == text or (name == "phi-3" and said.split() == text.split())


@shared
def test_roles_and_template_are_the_files() -> None:
    phi = of_file("phi-3")
    assert (phi.bos_token, phi.eos_token, phi.pad_token) == ("<s>", "<|endoftext|>", "<|endoftext|>")
    assert "<|user|>" in phi.chat_template
    assert phi("x")["input_ids"][0] == phi.bos_token_id
    qwen = of_file("qwen35")
    assert qwen("x")["input_ids"] == [87]  # no token begins a text
    assert "<|im_end|>" in qwen.all_special_tokens or qwen.added_tokens_decoder[151645].special


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "rwkv"}, "has a tokenizer of the kind 'rwkv', but only gpt2, llama, gemma4 are read"),
        ({"pre": "klingon"}, "cuts text into words as 'klingon' does, which is not known here"),
        ({"tokens": None}, "holds no tokenizer"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_one_sentence(changed: dict[str, Any], sentence: str) -> None:
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": []} | changed
    header = Header(Path("m.gguf"), {f"tokenizer.ggml.{key}": one for key, one in values.items() if one}, {}, None)
    with pytest.raises(UserError, match=sentence) as told:
        gguf_tokenizer(header)
    assert str(told.value).count(". ") == 0
