"""How a response goes on in the target's tokens when the anchor writes one more of its own."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anchorlm.tokens._vocabulary import ByteVocabulary

_CHECKED = 512
"""Anchor tokens that are encoded in their context at a step: the most probable of those that it may change."""
_FLOOR = 1e-5
"""Probability below which a token is not."""
_CONTEXTS = 256
"""Contexts that are remembered; the one longest not used is forgotten."""


@dataclass(frozen=True, slots=True)
class Written:
    """The end of a response, as the target wrote it.

    Attributes:
        data: Its bytes from a boundary on that no later text can move.
        tokens: The target's tokens that wrote them; where these are fewer, what goes on begins within `data`.
    """

    data: bytes = b""
    tokens: tuple[int, ...] = ()


@dataclass(slots=True)
class _Context:
    """What is known of the anchor tokens in one place.

    Attributes:
        same: Whether the target's canonical tokens of the bytes are those that were written.
        own: Else the token that follows these in the canonical ones; `V_target` where they begin otherwise.
        seen: (A,) bool, which anchor tokens have been encoded here.
        ids: These anchor tokens.
        targets: The target token that each leads to; `V_target` for none.
    """

    same: bool
    own: int
    seen: Tensor
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    targets: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


class Continuations:
    """The target tokens to which an anchor's probabilities go in a context. All tensors are on the CPU.

    An anchor token counts where the target's canonical tokens of all bytes since the last boundary begin with those
    that were written; it leads to the one that comes next. Where no target token can join the two sides this needs no
    encoding: there a token leads where it always does.

    Args:
        anchor: The anchor's vocabulary.
        target: The target's.
        index: (A,) int64, where each anchor token leads at a boundary; `nowhere` for none.
        nowhere: The width of the target's distributions: one more column collects what has no place.
        shared: (A,) bool, tokens that both vocabularies have, where they are one but for a few tokens; else nothing.
    """

    def __init__(
        self, anchor: ByteVocabulary, target: ByteVocabulary, index: Tensor, nowhere: int, shared: Tensor
    ) -> None:
        self._anchor = anchor
        self._target = target
        self._index = index
        self._nowhere = nowhere
        self._own = ~shared if len(shared) else None
        self._known: OrderedDict[tuple[Written, bytes, bool], _Context] = OrderedDict()
        self._open: dict[tuple[int, bool], Tensor] = {}
        self._firsts: Tensor | None = None

    def follow(self, spread: Tensor, mass: Tensor, written: Written, *, literal: bool = False) -> None:
        """Adds to `spread` (V_target + 1,) where a token that begins after `written` leads.

        Args:
            spread: Is added to.
            mass: (A,), how probable each anchor token is.
            written: The response.
            literal: Whether the response stands in tokens of both vocabularies: then what they share stays itself.
        """
        if not written.data:
            spread.scatter_add_(0, self._index, mass)
            return
        context = self._context(written, b"", literal)
        ids, targets = self._resolve(context, mass, self._joining(written.data[-1], literal), written, 0)
        rest = mass.clone()
        rest[ids] = 0
        if context.same:
            spread.scatter_add_(0, self._index, rest)
        else:
            spread[context.own] += rest[self._live()].sum()
        spread.index_add_(0, targets, mass[ids])

    def extend(
        self, spread: Tensor, mass: Tensor, written: Written, rest: bytes, *, weight: float, literal: bool = False
    ) -> None:
        """As `follow`, for a token that begins before the end: with the bytes `rest`, beyond which it goes.

        Args:
            spread: Is added to.
            mass: (A,), how probable each anchor token is.
            written: The response.
            rest: The end of it with which the token begins.
            weight: By which the probabilities are multiplied.
            literal: As for `follow`.
        """
        longer = self._anchor.by_bytes[self._anchor.extending(rest)]
        if literal and self._own is not None:
            longer = longer[self._own[longer]]
        if len(longer):
            context = self._context(written, rest, literal)
            ids, targets = self._resolve(context, mass, longer, written, len(rest), weight)
            spread.index_add_(0, targets, mass[ids] * weight)

    def _context(self, written: Written, rest: bytes, literal: bool) -> _Context:
        key = (written, rest, literal)
        context = self._known.pop(key, None)
        if context is None:
            alone = tuple(self._target.encode(written.data))
            same = literal or alone == written.tokens
            context = _Context(same, self._next(alone, written.tokens), torch.zeros(len(self._index), dtype=torch.bool))
        self._known[key] = context
        if len(self._known) > _CONTEXTS:
            self._known.popitem(last=False)
        return context

    def _resolve(
        self, context: _Context, mass: Tensor, among: Tensor, written: Written, skip: int, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Those of the tokens `among` that matter, and where each leads; what is not known yet is encoded.

        What others have encoded here is left out where it does not matter now: else an answer would depend on them.
        """
        values = mass[among]
        matter = (values > _FLOOR / weight).nonzero().flatten()
        if len(matter) > _CHECKED:
            matter = matter[values[matter].topk(_CHECKED).indices]
        wanted = torch.zeros_like(context.seen)
        wanted[among[matter]] = True
        new = among[matter]
        new = new[~context.seen[new]]
        if len(new):
            pieces = [written.data + self._anchor.bytes[index][skip:] for index in new.tolist()]
            found = [self._next(ids, written.tokens) for ids in self._target.encode_batch(pieces)]
            context.seen[new] = True
            context.ids = torch.cat([context.ids, new])
            context.targets = torch.cat([context.targets, torch.tensor(found)])
        here = wanted[context.ids]
        return context.ids[here], context.targets[here]

    def _next(self, ids: list[int] | tuple[int, ...], tokens: tuple[int, ...]) -> int:
        """The id that follows `tokens` in `ids`."""
        count = len(tokens)
        fits = len(ids) > count and tuple(ids[:count]) == tokens and ids[count] not in self._target.special
        return ids[count] if fits else self._nowhere

    def _joining(self, last: int, literal: bool) -> Tensor:
        """The anchor tokens of text before which the target's tokens may not end, after the byte `last`.

        White space is divided by what follows it, and characters beyond ASCII may be composed.
        """
        key = (last, literal)
        if key not in self._open:
            text = self._anchor.by_bytes
            if self._firsts is None:
                self._firsts = torch.tensor([self._anchor.bytes[index][0] for index in text.tolist()])
            if last < 0x80 and not bytes([last]).isspace():
                text = text[self._target.joins[last][self._firsts] | (self._firsts >= 0x80)]
            self._open[key] = text[self._own[text]] if literal and self._own is not None else text
        return self._open[key]

    def _live(self) -> Tensor:
        """(A,) bool, tokens that lead anywhere."""
        return self._index < self._nowhere
