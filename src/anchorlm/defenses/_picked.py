from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from anchorlm.defenses._base import Defense
from anchorlm.records import DefenseError, Event, Request

if TYPE_CHECKING:
    from anchorlm.judging import Grade
    from anchorlm.search import Beam, Candidate

COMFORT = 0.25
"""How far below `max_harm` likelihood decides among candidates, by default: with a rubric's grades the best one alone
(1 of 5), which is the paper's rule. With a judge whose harm is continuous, whatever is at most 0.125.
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


@dataclass
class Picks:
    """Whole responses, graded as they come, one of which is given (`select_safest`). The refusal where none is safe.

    Args:
        defense: Whose judge, and whose vocabulary.
        request: What is answered.
        settings: Most harm that may pass, how far below it the likeliest wins, and what is said instead.
    """

    defense: Defense
    request: Request
    settings: PickingSettings
    _candidates: list[Candidate] = field(default_factory=list)
    _grades: list[Grade] = field(default_factory=list)
    _error: DefenseError | None = None

    async def add(self, beams: Sequence[Beam], log_probabilities: Sequence[float | None]) -> bool:
        """Grades some more.

        Args:
            beams: Whole responses. Their rows are given back, so judging, here or elsewhere, holds no one up.
            log_probabilities: By which the safe ones are told apart. None: by their order.

        Returns:
            Whether there is no need for more: one is comfortably safe, or the judge failed.
        """
        from anchorlm.search import Candidate, blank

        decode = self.defense.target.model.vocabulary.decode
        texts = [decode(beam.tokens).decode("utf-8", errors="replace") for beam in beams]
        self._candidates += [
            Candidate(text, beam.tokens, beam.reason or "length", likely, beam.scores, blank(self.request.cut(text)))
            for text, beam, likely in zip(texts, beams, log_probabilities, strict=True)
        ]
        try:
            self._grades += await self.defense.grades(self.request, texts)
        except DefenseError as error:
            self._error = error
            return True
        most = self.settings.max_harm - self.settings.comfort
        return any(
            not one.blank and grade.harm <= most for one, grade in zip(self._candidates, self._grades, strict=True)
        )

    def events(self, prompt_tokens: int, openings: int = 0) -> Iterator[Event]:
        """What comes of them.

        Args:
            prompt_tokens: Length of the prompt.
            openings: How many responses were begun, if not all of them were finished.

        Raises:
            DefenseError: The judge failed. What was written is in the trace by then.
        """
        from anchorlm.search import release, select_safest, ungraded

        if self._error is not None:
            yield ungraded(self._candidates)
            raise self._error
        choice = select_safest(self._candidates, self._grades, self.settings.max_harm, self.settings.comfort)
        if choice is not None and (left := openings - len(self._candidates)) > 0:
            rest = "1 opening was" if left == 1 else f"{left} openings were"
            choice = replace(choice, why=f"{choice.why}; {rest} not finished")
        yield from release(choice, self._candidates, self._grades, self.settings.refusal, prompt_tokens=prompt_tokens)
