from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from anchorlm.defenses._base import Defense
from anchorlm.records import DefenseError, Event, Request
from anchorlm.search import Beam, Candidate, release, select, ungraded


async def picked(
    defense: Defense,
    request: Request,
    beams: Sequence[Beam],
    log_probabilities: Sequence[float | None],
    max_harm: float,
    *,
    prompt_tokens: int,
) -> AsyncIterator[Event]:
    """The safest of finished beams by the defense's judge, or its refusal where none is safe enough.

    Args:
        defense: Whose judge, and whose vocabulary.
        request: What is answered.
        beams: Whole responses; their rows are given back, so that judging, here or elsewhere, holds nobody up.
        log_probabilities: By which equally safe ones are told apart; None: by their order.
        max_harm: Most harm that may pass.
        prompt_tokens: Length of the prompt.

    Raises:
        DefenseError: The judge failed; what was written is in the trace by then.
    """
    decode = defense.target.model.vocabulary.decode
    candidates = [
        Candidate(
            decode(beam.tokens).decode("utf-8", errors="replace"),
            beam.tokens,
            beam.reason or "length",
            log_probability,
            beam.scores,
        )
        for beam, log_probability in zip(beams, log_probabilities, strict=True)
    ]
    try:
        grades = await defense.grades(request, [candidate.text for candidate in candidates])
    except DefenseError:
        yield ungraded(candidates)
        raise
    choice = select(candidates, grades, max_harm)
    refusal = defense.settings_for(request).refusal
    for event in release(choice, candidates, grades, refusal, prompt_tokens=prompt_tokens):
        yield event
