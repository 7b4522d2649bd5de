from __future__ import annotations

from pathlib import Path

from anchorlm.files import check_folder
from anchorlm.fitting._card import CARD, PICTURE, card
from anchorlm.fitting._picture import tradeoff_svg
from anchorlm.records import Artifact, UserError


def save_artifact(artifact: Artifact, folder: str | Path) -> Path:
    """Writes a fitted InferAligner: the artifact, its card, and once it is calibrated the picture of its trade-off.

    Raises:
        UserError: The folder cannot be written.
    """
    place = check_folder(folder, artifact.kind)
    try:
        artifact.save(place)
        (place / CARD).write_text(card(artifact, place.resolve().name), encoding="utf-8")
        if "calibration" in artifact.figures:
            (place / PICTURE).write_text(tradeoff_svg(artifact.figures["calibration"]), encoding="utf-8")
        else:
            (place / PICTURE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from None
    return place
