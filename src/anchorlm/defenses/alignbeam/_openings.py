from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anchorlm.defenses.alignbeam._guidance import Guided
from anchorlm.records import GenerationSettings, TokenScore

if TYPE_CHECKING:
    from anchorlm.defenses.alignbeam._mixture import MixedSequence
    from anchorlm.search import Diversity
    from anchorlm.tokens import ByteVocabulary


class Primed(Guided):
    """One of AlignBeam's candidates: a first token that is given, N - 1 more of the mixture, greedily, then the target
    alone, all in one block.

    Args:
        mixed: Both models before the response.
        tokens: N: how many tokens are mixed, the first among them.
        stops: The tokens that end the target's turn.
        room: Most tokens of the response; some may be there already, where a response format forces them.
        first: The first token that is a choice.
        log_probability: Of the first token in the mixture.

    Attributes:
        log_probability: Of the mixed tokens so far.
        whole: Whether all of them are written.
        ended: Whether the turn ended among them.
    """

    def __init__(
        self, mixed: MixedSequence, tokens: int, stops: frozenset[int], room: int, first: int, log_probability: float
    ) -> None:
        super().__init__(mixed, tokens, stops)
        self.log_probability = log_probability
        self.whole = self.ended = False
        self._room = room
        self._first: int | None = first

    def fork(self) -> Primed:
        """See `Proposal`; of one that has not begun."""
        if self._first is None:
            raise RuntimeError("An opening was forked after its first token.")
        return Primed(self.mixed.fork(), self._tokens, self._stops, self._room, self._first, self.log_probability)

    async def step(self) -> None:
        """Writes the next mixed token."""
        token, self._first = self._first, None
        if token is None:
            token, further = (await self.mixed.mixture()).top(1)[0]
            self.log_probability += further
        if not (ended := token in self._stops):
            self.mixed.append(token)
            ended = self.row.end_turn()
        self.ended = ended
        if ended or self.mixed.guided >= max(self._tokens, 1) or len(self.response) >= self._room:
            self.whole = True
            self.mixed.release_guide()  # while the target goes alone, the anchor's rows are free

    def go_on(self, mixed: MixedSequence, tokens: Sequence[int], scores: Sequence[TokenScore]) -> None:
        """Takes other rows, which hold the same prompts, in place of those that were given back.

        Args:
            mixed: Both models before the response.
            tokens: What of the response was written.
            scores: How likely each of these was, where that is to be known.
        """
        self.mixed.target, self.mixed.guide = mixed.target, mixed.guide
        self.row.append(tokens, scores)

    async def open(self) -> bool:
        """Writes all mixed tokens; whether the turn ended among them."""
        while not self.whole:
            await self.step()
        return self.ended

    async def extend(self, generation: GenerationSettings, diversity: Diversity | None = None) -> bool:
        """See `Proposal`; all of the response that there is room for."""
        if await self.open():
            return True
        left = self._room - len(self.response)
        if left <= 0:
            return False
        return (await self.row.generate(generation.model_copy(update={"max_new_tokens": left}))).finish_reason == "stop"


async def likeliest(openings: Sequence[Primed]) -> int:
    """Writes as much of some openings as shows which of them is the likeliest, and gives its place.

    With each token an opening can only become less likely. So the likeliest one goes on first, and once it is whole,
    the others need not be: they are behind already.
    """
    while True:
        place = max(range(len(openings)), key=lambda place: (openings[place].log_probability, -place))
        if openings[place].whole:
            return place
        await openings[place].step()


def distinct(openings: Sequence[Primed], vocabulary: ByteVocabulary) -> list[int]:
    """Their places, the likeliest first; of those that open with the same text only the first."""
    order = sorted(range(len(openings)), key=lambda place: -openings[place].log_probability)
    texts = {vocabulary.decode(openings[place].response): place for place in reversed(order)}
    return [place for place in order if place in texts.values()]
