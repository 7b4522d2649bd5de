from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol

from anchorlm.defenses._base import Defense
from anchorlm.records import DefenseError, Event, Request

if TYPE_CHECKING:
    from anchorlm.search import Beam

COMFORT = 0.25
"""How far below `max_harm` likelihood decides among candidates, by default: with a rubric's grades the best one alone
(1 of 5), which is the paper's rule; with a judge whose harm is continuous, whatever is at most 0.125.
"""


class PickingSettings(Protocol):
    """The knobs that a choice goes by."""

    @property
    def max_harm(self) -> float:
        """Most harm that may pass."""
        ...

    @property
    def comfort(self) -> float:
        """How far below it the likeliest wins."""
        ...

    @property
    def refusal(self) -> str:
        """What is said where none is safe enough."""
        ...


async def picked(
    defense: Defense,
    request: Request,
    beams: Sequence[Beam],
    log_probabilities: Sequence[float | None],
    settings: PickingSettings,
    *,
    prompt_tokens: int,
) -> AsyncIterator[Event]:
    """One of finished beams by the defense's judge (`select`), or its refusal where none is safe enough.

    Args:
        defense: Whose judge, and whose vocabulary.
        request: What is answered.
        beams: Whole responses; their rows are given back, so that judging, here or elsewhere, holds nobody up.
        log_probabilities: By which the safe ones are told apart; None: by their order.
        settings: Most harm that may pass, how far below it the likeliest wins, and what is said instead.
        prompt_tokens: Length of the prompt.

    Raises:
        DefenseError: The judge failed; what was written is in the trace by then.
    """
    from anchorlm.search import Candidate, blank, release, select, ungraded

    decode = defense.target.model.vocabulary.decode
    texts = [decode(beam.tokens).decode("utf-8", errors="replace") for beam in beams]
    candidates = [
        Candidate(
            text,
            beam.tokens,
            beam.reason or "length",
            log_probability,
            beam.scores,
            blank(request.cut(text)),
        )
        for text, beam, log_probability in zip(texts, beams, log_probabilities, strict=True)
    ]
    try:
        grades = await defense.grades(request, texts)
    except DefenseError:
        yield ungraded(candidates)
        raise
    choice = select(candidates, grades, settings.max_harm, settings.comfort)
    for event in release(choice, candidates, grades, settings.refusal, prompt_tokens=prompt_tokens):
        yield event
