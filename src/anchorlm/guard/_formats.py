from __future__ import annotations

from anchorlm.defenses import Defense
from anchorlm.records import Access, GenerationSettings, UserError


def format_gap(defense: Defense) -> str | None:
    """Why a defense cannot hold its answers to a response format, in a sentence with the remedy; None where it can."""
    if defense.formats == "none":
        return (
            f"{defense.name} gives text that no response_format holds: leave response_format out, or choose another "
            "defense."
        )
    if defense.formats == "local" and defense.target.access < Access.LOGITS:
        return (
            f"{defense.name} holds answers to a response_format only where the target is loaded here: leave "
            "response_format out, load the target with transformers, or choose a defense such as best_of_n."
        )
    return None


def check_format(defense: Defense, generation: GenerationSettings) -> None:
    """Whether a request's response format can be honored; its schema is compiled now.

    Raises:
        UserError: It cannot.
    """
    if generation.response_format is None:
        return
    if gap := format_gap(defense):
        raise UserError(gap)
    target = defense.target
    if target.access >= Access.LOGITS:  # another server compiles it itself
        target.model.grammars.form(generation.response_format)
