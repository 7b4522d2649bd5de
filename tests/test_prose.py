"""README and documentation are easy to read, by the measure that the documentation of httpx and llm meets, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LONG = 30
"""Words of a sentence that is too long."""

OLD = ("so that", "whoever", "nobody", "somebody", "whence", "anew", "beside", "likewise", "thereof", "upon", "is none")


def prose(text: str) -> list[list[str]]:
    """The sentences of a page as lists of words: without code, tables, pictures and targets of links.

    A list is one block, as a reader sees it: an item without a full stop runs on into the next one.
    """
    sentences: list[list[str]] = []
    for block in re.split(r"\n[ \t]*\n", re.sub(r"(?s)```.*?```", "", text)):
        lines = [line for line in block.split("\n") if not line.startswith(("|", "    ", "\t"))]
        words = re.sub(r"`[^`]*`", "X", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", _words, "\n".join(lines)))
        found = [sentence.split() for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"<[^>]+>", "", words))]
        sentences += [sentence for sentence in found if len(sentence) > 2]
    return sentences


def _words(link: re.Match[str]) -> str:
    return "" if link[0].startswith("!") else link[1]


class Figures:
    """How sentences read.

    Attributes:
        length: Words a sentence.
        long: Share of the sentences that are too long.
        semicolons: Of 1,000 words.
        you: Likewise.
        old: Old-fashioned words among them.
    """

    def __init__(self, sentences: list[list[str]]) -> None:
        words = sum(map(len, sentences))
        text = " ".join(word for sentence in sentences for word in sentence).lower()
        self.length = words / len(sentences)
        self.long = sum(len(sentence) > LONG for sentence in sentences) / len(sentences)
        self.semicolons = 1000 * text.count(";") / words
        self.you = 1000 * len(re.findall(r"\byour?\b", text)) / words
        self.old = [word for word in OLD if re.search(rf"\b{word}\b", text)]


def test_code_tables_and_links_are_not_prose_and_a_list_without_stops_is_one_sentence() -> None:
    page = """# A heading of it

    indented code is not read

You read *this*; see [the page](somewhere.md). `some code` counts once.

```sh
never read this line
```

| a table | is not read |

- one item
- and another one
"""
    assert prose(page) == [
        ["#", "A", "heading", "of", "it"],
        ["You", "read", "*this*;", "see", "the", "page."],
        ["X", "counts", "once."],
        ["-", "one", "item", "-", "and", "another", "one"],
    ]


def test_readme_and_documentation_together_are_easy_to_read() -> None:
    figures = Figures([sentence for page in PAGES for sentence in prose(page.read_text("utf-8"))])
    assert figures.length <= 15
    assert figures.long <= 0.05
    assert figures.semicolons <= 2
    assert figures.you >= 8
    assert figures.old == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_no_page_is_much_harder_to_read_than_the_others(page: Path) -> None:
    figures = Figures(prose(page.read_text("utf-8")))
    assert figures.length <= 18
    assert figures.long <= 0.08
