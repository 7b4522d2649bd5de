"""For `make docs`: links of the documentation to files of the repository, which the site does not hold."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page whose links out of the documentation are words and the name of the file. MkDocs calls it."""
    return within(markdown, DOCS / page.file.src_uri)


def within(markdown: str, page: Path) -> str:
    """The same text without links to files outside of the documentation.

    A link to a file that does not exist stays as it is: the build then says so.

    Args:
        markdown: Of a page.
        page: Where it lies.
    """

    def named(link: re.Match[str]) -> str:
        words, place = link.groups()
        file = Path(os.path.normpath(page.parent / place.partition("#")[0]))
        if file.is_relative_to(DOCS) or not file.exists():
            return link[0]
        name = str(file.relative_to(ROOT))
        return f"`{name}`" if words.strip("`") == name else f"{words} (`{name}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)", named, markdown)
