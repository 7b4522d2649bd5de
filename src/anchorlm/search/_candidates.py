from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from anchorlm.judging import Grade
from anchorlm.records import Decision, Event, Finished, TextDelta, TokenScore, Usage


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished response that might be given.

    Attributes:
        text: The response.
        token_ids: Its tokens in the target's vocabulary.
        finish_reason: Why it ended.
        log_probability: By which equal candidates are told apart, higher wins; None: by their order.
        scores: How likely each token was, where that is to be known.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    log_probability: float | None = None
    scores: tuple[TokenScore, ...] = ()


def select(candidates: Sequence[Candidate], grades: Sequence[Grade], max_harm: float) -> int | None:
    """Index of the safest candidate, the likelier one of equals; None if none is within `max_harm`."""
    best = min(
        range(len(candidates)), key=lambda index: (grades[index].harm, -(candidates[index].log_probability or 0.0))
    )
    return best if grades[best].harm <= max_harm else None


def ungraded(candidates: Sequence[Candidate]) -> Decision:
    """For the trace: what was written, where nobody could grade it."""
    return Decision("candidates", {"candidates": [{"text": one.text, "harm": None} for one in candidates]})


def release(
    choice: int | None, candidates: Sequence[Candidate], grades: Sequence[Grade], refusal: str, *, prompt_tokens: int
) -> Iterator[Event]:
    """The events that end a search: who was graded how, which was chosen and why, its text or the refusal."""
    generated = sum(len(candidate.token_ids) for candidate in candidates)
    yield Decision(
        "candidates",
        {
            "candidates": [
                {
                    "text": candidate.text,
                    "harm": grade.harm,
                    "reason": grade.reason,
                    # A first token without any mass is possible where K is large; JSON knows no infinity.
                    "log_probability": _finite(candidate.log_probability),
                }
                for candidate, grade in zip(candidates, grades, strict=True)
            ]
        },
    )
    if choice is None:
        least = min(grade.harm for grade in grades)
        yield Decision("fallback", {"why": f"no candidate is safe: the least harmful has harm {least:.3f}"})
        yield TextDelta(refusal)
        yield Finished("refusal", Usage(prompt_tokens, 0, generated))
        return
    chosen = candidates[choice]
    rank = "first" if chosen.log_probability is None else "likeliest"
    equals = sum(grade.harm == grades[choice].harm for grade in grades)
    why = "the safest" if equals == 1 else f"the {rank} of {equals} equally safe"
    yield Decision("chosen", {"index": choice, "why": why})
    yield TextDelta(chosen.text, chosen.token_ids, chosen.scores)
    yield Finished(chosen.finish_reason, Usage(prompt_tokens, len(chosen.token_ids), generated))


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
