from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from anchorlm.records import Artifact, UserError

_CARD = "README.md"


def check_folder(folder: str | Path, kind: str) -> Path:
    """The folder, if an artifact of a kind may be written there. What is wrong is said before any work is done.

    Raises:
        UserError: It is a file, cannot be written, or holds something else than such an artifact.
    """
    place = Path(folder)
    if place.is_dir():
        if any(place.iterdir()) and not (place / "artifact.json").is_file():
            raise UserError(f"{str(folder)!r} holds something else than an artifact: choose another folder.")
        if (place / "artifact.json").is_file() and (held := _kind(place)) not in (kind, None):
            raise UserError(f"{str(folder)!r} holds an artifact of {held}: choose another folder.")
        nearest = place
    else:
        nearest = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{str(folder)!r} cannot be written: choose another folder.")
    return place


def _kind(place: Path) -> str | None:
    """Of the artifact that is there. None if it is damaged, and may be replaced."""
    try:
        return str(json.loads((place / "artifact.json").read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_with_card(
    artifact: Artifact, folder: str | Path, card: str, pictures: Mapping[str, str | None] | None = None
) -> Path:
    """Writes an artifact with its card.

    Args:
        artifact: What was fitted.
        folder: Where to.
        card: What tells people of it, in Markdown.
        pictures: Those of the card by the name of their file. None: there is none, and an older one goes.

    Raises:
        UserError: The folder cannot be written.
    """
    place = check_folder(folder, artifact.kind)
    try:
        artifact.save(place)
        (place / _CARD).write_text(card, encoding="utf-8")
        for name, picture in (pictures or {}).items():
            if picture is None:
                (place / name).unlink(missing_ok=True)
            else:
                (place / name).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from None
    return place
