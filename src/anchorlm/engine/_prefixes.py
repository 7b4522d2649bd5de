from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor

from anchorlm.engine._batch import SlotRow
from anchorlm.engine._slots import SlotCache
from anchorlm.engine._steering import Edit

_LEAST = 16
"""Positions from which on keeping and copying pays."""

_ALIKE = 64
"""Tokens that two prompts must still have in common for one to wait while the other is read."""

State = tuple[int, float] | None
"""What the activations are changed by: the edits, by identity, and their strength. None where nothing is."""


@dataclass(slots=True, eq=False)
class _Node:
    """A run of tokens that always followed what its parents hold.

    Attributes:
        tokens: The run.
        states: Its keys and values, as `SlotCache.take` gives them.
        parent: What comes before. None at a root.
        children: What comes after, by first token.
        used: When it was last used.
        edits: At a root, the edits that its state names: while they are held, no others have their identity.
    """

    tokens: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    parent: _Node | None = None
    children: dict[int, _Node] = field(default_factory=dict)
    used: int = 0
    edits: Mapping[int, Any] | None = None


class Prefixes:
    """Keys and values of what was read lately: a row that begins alike starts from them.

    A tree of tokens for each way to steer, since a token's keys and values follow from the tokens up to it and from
    what was done to these. What was not used for longest goes first.

    Args:
        cache: The slots that are copied from and to.
        most: Most positions to keep. 0 keeps none.
        max_tokens: Most positions in memory, the slots' included.
    """

    def __init__(self, cache: SlotCache, most: int, max_tokens: int) -> None:
        self._cache = cache
        self._most = most
        self._max_tokens = max_tokens
        self._roots: dict[State, _Node] = {}
        self._clock = count(1)
        self.size = 0
        self.saved = 0
        """Tokens that nobody had to read, since the engine was made."""

    @property
    def room(self) -> int:
        """Most positions that may be kept besides the slots as they are."""
        return max(0, min(self._most, self._max_tokens - self._cache.slots * self._cache.length))

    def fill(self, row: SlotRow, end: int) -> None:
        """Starts a row of which nothing was read from what is kept, up to position `end` at most."""
        end = min(end, _limit(row), len(row.tokens) - 1)  # the last token is always read: logits come after it
        if row.computed or row.slot < 0 or not self.size or not self._cache.made or end < _LEAST:
            return
        root = self._roots.get(_state(row))
        if root is None:
            return
        path = list(_path(root, row.tokens, end))
        length = sum(same for _, same in path)
        if length < _LEAST:
            return
        start = 0
        for node, same in path:
            self._cache.put(row.slot, start, node.states, same)
            start += same
        self._touch(path)
        row.computed = length
        self.saved += length

    def keep(self, row: SlotRow) -> None:
        """Keeps what a row has read."""
        end = min(row.computed, _limit(row), self.room)
        if end < _LEAST or row.slot < 0:
            return
        state = _state(row)
        root = self._roots.get(state) or _Node(edits=row.steering.edits if state and row.steering else None)
        path = list(_path(root, row.tokens, end))
        start = sum(same for _, same in path)
        self._touch(path)
        if end - start < _LEAST:
            return
        last = root
        if path:
            last, same = path[-1]
            if same < len(last.tokens):
                _split(last, same)
        self._shrink(self.room - (end - start), last)
        end = min(end, start + self.room - self.size)
        if end <= start:
            return
        self._roots[state] = root
        node = _Node(row.tokens[start:end], self._cache.take(row.slot, start, end), last, used=next(self._clock))
        last.children[node.tokens[0]] = node
        self.size += end - start

    def shrink(self) -> None:
        """Gives up what the slots need by now."""
        self._shrink(self.room, None)

    def clear(self) -> None:
        """Gives up everything."""
        self._roots.clear()
        self.size = 0

    def alike(self, row: SlotRow, end: int) -> tuple[State, int, tuple[int, ...]] | None:
        """What two rows have in common of which one should wait for the other. None where it should not wait.

        Args:
            row: Of which something is to be read.
            end: Its position up to which what is kept may be used.
        """
        beyond = row.computed + _ALIKE
        if beyond > min(end, _limit(row), len(row.tokens) - 1, self.room):
            return None
        return _state(row), row.computed, tuple(row.tokens[row.computed : beyond])

    def _touch(self, path: Sequence[tuple[_Node, int]]) -> None:
        now = next(self._clock)
        for node, _ in path:
            node.used = now

    def _shrink(self, most: int, spared: _Node | None) -> None:
        """Gives up leaves, those first that were not used for longest, but not the way to `spared`."""
        if self.size <= most:
            return
        safe = set()
        while spared is not None:
            safe.add(id(spared))
            spared = spared.parent
        while leaves := [node for node in self._nodes() if not node.children and id(node) not in safe]:
            for node in sorted(leaves, key=lambda node: node.used):
                self._drop(node)
                if self.size <= most:
                    return

    def _drop(self, node: _Node) -> None:
        self.size -= len(node.tokens)
        if node.parent is not None:
            del node.parent.children[node.tokens[0]]
        for state in [state for state, root in self._roots.items() if not root.children]:
            del self._roots[state]

    def _nodes(self) -> Iterator[_Node]:
        waiting = [child for root in self._roots.values() for child in root.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())


def _limit(row: SlotRow) -> int:
    """Up to which position a row's keys and values follow from its tokens and its state alone.

    Images are not in the tokens. A change that is no `Edit` may be any function, also one that remembers.
    """
    if row.embeddings is not None:
        return 0
    steering, end = row.steering, len(row.tokens)
    if steering is None or not steering.strength:
        return end
    return int(min(end, row.steered_until)) if _state(row) is not None else 0


def _state(row: SlotRow) -> State:
    steering = row.steering
    if steering is None or not steering.strength:
        return None
    if not all(isinstance(edit, Edit) for edit in steering.edits.values()):
        return None
    return id(steering.edits), steering.strength


def _path(root: _Node, tokens: list[int], end: int) -> Iterator[tuple[_Node, int]]:
    """The nodes that hold the beginning of some tokens, up to `end`, and how many of each one's are the same."""
    node, start = root, 0
    while start < end and (child := node.children.get(tokens[start])) is not None:
        size = min(len(child.tokens), end - start)
        mine, kept = tokens[start : start + size], child.tokens[:size]
        same = size if mine == kept else next(i for i in range(size) if mine[i] != kept[i])
        yield child, same
        if same < len(child.tokens):
            return
        node, start = child, start + same


def _split(node: _Node, at: int) -> None:
    """Makes two of a node. The second is its child. Each has its memory to itself, which giving it up frees."""
    rest = _Node(node.tokens[at:], [each[..., at:, :].clone() for each in node.states], node, node.children, node.used)
    for child in rest.children.values():
        child.parent = rest
    node.tokens, node.states = node.tokens[:at], [each[..., :at, :].clone() for each in node.states]
    node.children = {rest.tokens[0]: rest}
