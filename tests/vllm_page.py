"""The blocks of docs/vllm.md, with models that are here in place of those that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "vllm.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def block(kind: str, words: str, names: Mapping[str, object] | None = None) -> str:
    """The one block of a language in which some words stand.

    Args:
        kind: The language.
        words: Of which it is known.
        names: What is put in the place of names.
    """
    blocks: list[tuple[str, str]] = _BLOCK.findall(PAGE.read_text("utf-8"))
    (found,) = [text for language, text in blocks if language == kind and words in text]
    for name, value in (names or {}).items():
        found = found.replace(name, str(value))
    return found
