from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def templates(shared_data: Path) -> dict[str, str]:
    """The chat templates of real models, as their makers publish them."""
    folder = shared_data / "templates"
    if not folder.is_dir():
        pytest.skip(f"no chat templates at {folder}: they are a part of the public data")
    return {file.stem: file.read_text("utf-8") for file in sorted(folder.glob("*.jinja"))}
