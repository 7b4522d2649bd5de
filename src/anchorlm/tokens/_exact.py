"""The yardstick: the distribution of the first target token of what the anchor says next, by expansion."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from anchorlm.tokens._maps import NOWHERE, role_map
from anchorlm.tokens._retokenizer import Retokenizer
from anchorlm.tokens._vocabulary import ByteVocabulary

NextProbs = Callable[[Sequence[tuple[int, ...]]], Tensor | Awaitable[Tensor]]
"""From n continuations (anchor ids) to the anchor's distributions after each of them: (n, V_anchor)."""


@dataclass(frozen=True, slots=True)
class ExactProjection:
    """What the oracle found.

    Attributes:
        probs: (V_target,), sums to 1. Mass that was not followed to the end lies where it would go if the text ended.
            NaN where no text is possible whose tokens begin with those that were written.
        residual: How much mass that is: no entry's event is misjudged by more.
        forwards: How many continuations the anchor was asked about.
    """

    probs: Tensor
    residual: float
    forwards: int


async def exact_projection(
    next_probs: NextProbs,
    anchor: ByteVocabulary,
    target: ByteVocabulary,
    *,
    pending: bytes = b"",
    written: Sequence[int] = (),
    residual: float = 1e-3,
    max_forwards: int = 4096,
    batch: int = 64,
) -> ExactProjection:
    """The law of the target's next token given those so far: the next one of what the anchor says.

    Continuations are expanded, the most probable first, until their bytes leave the next canonical target token no
    choice, or contradict those that were written.

    Args:
        next_probs: The anchor, as a function. May be a coroutine function.
        anchor: Its vocabulary.
        target: The target's.
        pending: Bytes that the continuation begins with and that the response already has (see `Encoded`).
        written: The target's tokens at the end of the response, from a boundary on that no later text can move
            (`Retokenizer.open_tokens`).
        residual: Stop when at most this share of the mass is undecided.
        max_forwards: Stop after so many continuations.
        batch: Ask about so many at once.
    """
    place = _Place(target, pending, tuple(written))
    roles = role_map(anchor, target)
    settled = torch.zeros(target.size, dtype=torch.float64)
    guesses = torch.zeros(target.size, dtype=torch.float64)
    order = count()
    # Entries: (-probability, tie-breaker, ids, bytes beyond the pending ones or still within them, guess).
    waiting: list[tuple[float, int, tuple[int, ...], bytes, int]] = [(-1.0, next(order), (), b"", NOWHERE)]
    pruned = 0.0
    forwards = 0
    while waiting and forwards < max_forwards:
        open_mass = -sum(entry[0] for entry in waiting) + pruned
        if open_mass <= residual * (open_mass + float(settled.sum())):
            break
        nodes = [heapq.heappop(waiting) for _ in range(min(batch, len(waiting)))]
        answer = next_probs([ids for _, _, ids, _, _ in nodes])
        rows = (await answer if inspect.isawaitable(answer) else answer)[:, : anchor.size].double().cpu()
        forwards += len(nodes)
        floor = residual * open_mass * 1e-4
        for (negative, _, ids, data, guess), row in zip(nodes, rows, strict=True):
            mass = row * -negative
            for end, stop in roles.items():
                found = place.ended(data, stop)
                if found != NOWHERE:
                    settled[found] += mass[end]
                mass[end] = 0.0
            chosen = (mass > floor).nonzero().flatten().tolist()
            grown = {i: data + anchor.bytes[i] for i in chosen if anchor.bytes[i]}
            if len(data) < len(pending):
                grown = {i: g for i, g in grown.items() if g.startswith(pending) or pending.startswith(g)}
            else:
                lost = float(mass.sum()) - sum(float(mass[i]) for i in grown)
                pruned += max(lost, 0.0)
                if guess != NOWHERE:
                    guesses[guess] += max(lost, 0.0)
            for i, text in grown.items():
                following, certain = place.following(text)
                if not certain:
                    heapq.heappush(waiting, (-float(mass[i]), next(order), (*ids, i), text, following))
                elif following != NOWHERE:
                    settled[following] += mass[i]
    for negative, _, _, _, guess in waiting:
        if guess != NOWHERE:
            guesses[guess] -= negative
    total = settled + guesses
    undecided = float(-sum(entry[0] for entry in waiting) + pruned)
    known = undecided + float(settled.sum())
    return ExactProjection(total / total.sum(), undecided / known if known else 0.0, forwards)


class _Place:
    """Where the target stands: what it has written since a boundary, of which the anchor may have the end pending."""

    def __init__(self, target: ByteVocabulary, pending: bytes, written: tuple[int, ...]) -> None:
        data = target.decode(written)
        self._target = target
        self._retokenizer = Retokenizer(target)
        self._written = written
        self._pending = pending
        self._before = data[: max(len(data) - len(pending), 0)]
        self._skip = max(len(pending) - len(data), 0)

    def following(self, text: bytes) -> tuple[int, bool]:
        """The token that follows what was written once the anchor has said `text`, and whether that is certain."""
        if len(text) <= len(self._pending):
            return NOWHERE, False
        encoded = self._retokenizer.encode(self._before + text[self._skip :])
        ids, count = (*encoded.ids, *encoded.tail), len(self._written)
        fits = ids[:count] == self._written and len(ids) > count
        following = ids[count] if fits and ids[count] not in self._target.special else NOWHERE
        if ids[: min(count, encoded.stable)] != self._written[: encoded.stable]:
            return NOWHERE, True
        return following, fits and encoded.stable > count

    def ended(self, text: bytes, stop: int) -> int:
        """The same if the text ends there. `stop` where nothing follows what was written."""
        if len(text) < len(self._pending):
            return NOWHERE
        ids = tuple(self._target.encode(self._before + text[self._skip :]))
        count = len(self._written)
        if ids[:count] != self._written:
            return NOWHERE
        return ids[count] if len(ids) > count else stop
