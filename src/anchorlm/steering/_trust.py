from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anchorlm.records import Artifact, wilson
from anchorlm.steering._choices import KIND


def established(sign: Mapping[str, Any]) -> bool:
    """Whether a test of the sign showed that the vectors make refusals: of the held-out harmful prompts at least half
    are refused one way, and so many fewer the other way that the 95 % intervals of the two rates do not meet.

    It takes four prompts at least.

    Args:
        sign: `figures["sign"]` of an artifact.
    """
    chosen, other = sorted((int(sign["refused towards"]), int(sign["refused away"])), reverse=True)
    n = int(sign["n"])
    return 2 * chosen >= n and wilson(chosen, n)[0] > wilson(other, n)[1]


def answer_of(artifact: Artifact) -> str:
    """What is given where the gate opens: the steered answer, or the fixed refusal.

    A steering that was never shown to make refusals is not trusted with an answer, whatever an older fit wrote down.
    """
    if not _calibrated(artifact) and not established(artifact.figures["sign"]):
        return "refuse"
    return str(artifact.settings.get("answer", "steer"))


def uncalibrated(artifact: Artifact) -> str | None:
    """What is to be known of an InferAligner whose settings were chosen on nothing, in one sentence with the remedy.
    None if they were.
    """
    if artifact.kind != KIND or _calibrated(artifact):
        return None
    shown = (
        ""
        if established(artifact.figures["sign"])
        else ", and its vectors were not shown to make the target refuse, so inferaligner gives the fixed refusal "
        "where its gate opens"
    )
    return (
        f"The artifact of {artifact.models['target'].name} is uncalibrated: its settings are first guesses{shown}; "
        "choose them with `anchorlm calibrate inferaligner`."
    )


def _calibrated(artifact: Artifact) -> bool:
    return bool(artifact.figures.get("calibration"))
