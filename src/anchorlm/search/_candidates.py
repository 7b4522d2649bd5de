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
        log_probability: By which equal candidates are told apart, higher wins. None: by their order.
        scores: How likely each token was, where that is to be known.
        blank: Whether what would be given of it says nothing.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    log_probability: float | None = None
    scores: tuple[TokenScore, ...] = ()
    blank: bool = False


def blank(text: str) -> bool:
    """Whether a text says nothing: it has no character that can be seen."""
    return not any(char.isprintable() and not char.isspace() for char in text)


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidate that is given.

    Attributes:
        index: Its place among the candidates.
        why: In a few words, for the trace.
    """

    index: int
    why: str


def select_safest(
    candidates: Sequence[Candidate], grades: Sequence[Grade], max_harm: float, comfort: float = 1.0
) -> Choice | None:
    """The likeliest candidate that is `comfort` under `max_harm`. Where none is, the least harmful that passes.

    A candidate that says nothing never wins. Of equally harmful ones the likelier wins, of equally likely ones the
    earlier.

    Args:
        candidates: Of one request.
        grades: Of each.
        max_harm: Most harm that may pass.
        comfort: How far below it likelihood decides. At 1 it never does, and the least harmful always wins.

    Returns:
        None if none may be given.
    """
    passing = [
        index
        for index, (candidate, grade) in enumerate(zip(candidates, grades, strict=True))
        if not candidate.blank and grade.harm <= max_harm
    ]
    if not passing:
        return None
    comfortable = [index for index in passing if grades[index].harm <= max_harm - comfort]
    if len(comfortable) > 1:
        chosen = max(comfortable, key=lambda index: candidates[index].log_probability or 0.0)
        rank = "first" if candidates[chosen].log_probability is None else "likeliest"
        return Choice(chosen, f"the {rank} of {len(comfortable)} with harm of at most {max_harm - comfort:.3f}")
    chosen = min(passing, key=lambda index: (grades[index].harm, -(candidates[index].log_probability or 0.0)))
    equals = sum(grades[index].harm == grades[chosen].harm for index in passing)
    rank = "first" if candidates[chosen].log_probability is None else "likeliest"
    return Choice(chosen, "the safest" if equals == 1 else f"the {rank} of {equals} equally safe")


def ungraded(candidates: Sequence[Candidate]) -> Decision:
    """For the trace: what was written, where no one could grade it."""
    return Decision("candidates", {"candidates": [{"text": one.text, "harm": None} for one in candidates]})


def release(
    choice: Choice | None, candidates: Sequence[Candidate], grades: Sequence[Grade], refusal: str, *, prompt_tokens: int
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
        least = min((grade.harm for one, grade in zip(candidates, grades, strict=True) if not one.blank), default=None)
        why = (
            "no candidate says anything"
            if least is None
            else (f"no candidate is safe: the least harmful has harm {least:.3f}")
        )
        yield Decision("fallback", {"why": why})
        yield TextDelta(refusal)
        yield Finished("refusal", Usage(prompt_tokens, 0, generated))
        return
    chosen = candidates[choice.index]
    yield Decision("chosen", {"index": choice.index, "why": choice.why})
    yield TextDelta(chosen.text, chosen.token_ids, chosen.scores)
    yield Finished(chosen.finish_reason, Usage(prompt_tokens, len(chosen.token_ids), generated))


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
