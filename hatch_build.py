"""The README as package indexes show it: there the files of the repository that it links to are not at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Names the files instead of linking to them."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the readme of the package."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_links(text)}


def without_links(text: str) -> str:
    """Markdown with each relative link as its words and the name of the file in the source distribution."""
    return re.sub(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)]+)\)", _named, text)


def _named(link: re.Match[str]) -> str:
    words, place = link.groups()
    file = place.partition("#")[0]
    return f"`{file}`" if words.strip("`") == file else f"{words} (`{file}`)"
