from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True, slots=True)
class View:
    """A plan's view of one layer.

    Attributes:
        cells: Where the new tokens' heads go in the flat stores (m * heads,).
        flat: Keys and values of all slots, (slots * heads * length, head size) each.
        rows: Keys and values of the batch's rows, (n, heads, length, head size) each. None where they must be gathered.
    """

    cells: Tensor
    flat: tuple[Tensor, Tensor]
    rows: tuple[Tensor, Tensor] | None


@dataclass(slots=True)
class SlotPlan:
    """Where one forward over n rows of T tokens reads and writes the slots.

    Attributes:
        slots: The rows' slots: a slice where they lie side by side (then reading copies nothing), else indices (n,).
        length: Positions that are read, L: up to the longest row.
        token_slot: Slot of each new token (m,), row by row. Padding of the query is left out.
        token_position: Position of each new token in its slot (m,).
        queries: Row and column of each new token in the batch, (m,) each. None where no query is padding.
        views: By layer.
        cells: Those of the views, by number of heads and device: most layers have the same.
    """

    slots: slice | Tensor
    length: int
    token_slot: Tensor
    token_position: Tensor
    queries: tuple[Tensor, Tensor] | None = None
    views: dict[int, View] = field(default_factory=dict)
    cells: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def advance(self) -> None:
        """The same rows, one token later."""
        self.length += 1
        self.token_position.add_(1)
        for cells in self.cells.values():
            cells.add_(1)


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of all rows: per layer two tensors (slots, heads, length, head size).

    Every row starts at position 0 of its slot, so rows of any length live side by side without padding, cropping
    is forgetting a length, and forking is copying one slot.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.plan: SlotPlan | None = None
        self.slots = 0
        self.length = 0
        self.version = 0  # of the stores: plans made for another one are void
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values (n, heads, T, head size), returns all of the batch's rows (n, heads, L, .)."""
        plan = self.plan
        if plan is None:
            raise RuntimeError("The slots were used without a plan.")
        view = plan.views.get(layer_idx) or self._view(plan, layer_idx, key_states, value_states)
        keys, values = view.flat
        keys.index_copy_(0, view.cells, _tokens(plan, key_states))
        values.index_copy_(0, view.cells, _tokens(plan, value_states))
        if view.rows is not None:
            keys, values = view.rows
            return keys.narrow(2, 0, plan.length), values.narrow(2, 0, plan.length)
        keys, values = self._stores[layer_idx]
        return keys[plan.slots, :, : plan.length], values[plan.slots, :, : plan.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given explicitly. A model that asks is told that there is no past."""
        return 0

    @torch.inference_mode()
    def resize(self, slots: int, length: int, used_slots: int, used_length: int) -> None:
        """Makes room for `slots` rows of `length` positions, and keeps what is used."""

        def sized(old: Tensor, slots: int, length: int) -> Tensor:
            fresh = old.new_zeros(slots, old.shape[1], length, old.shape[3])
            fresh[:used_slots, :, :used_length] = old[:used_slots, :, :used_length]
            return fresh

        if self.plan is not None:
            self.plan.views.clear()  # they would keep the old slots in memory
        self.version += 1
        if not used_slots or not used_length:
            self._allocate(slots, length)
            return
        done: list[int] = []
        try:
            # Layer by layer, so that the old slots of all layers never lie in memory next to the new ones.
            for layer, (keys, values) in self._stores.items():
                self._stores[layer] = sized(keys, slots, length), sized(values, slots, length)
                done.append(layer)
        except BaseException:  # memory ran out: what was there still fits
            try:
                for layer in done:
                    keys, values = self._stores[layer]
                    self._stores[layer] = sized(keys, self.slots, self.length), sized(values, self.slots, self.length)
            except BaseException:  # not even that: rows are read again
                self._stores = {}
                raise
            raise
        self.slots, self.length = slots, length

    @property
    def made(self) -> bool:
        """Whether there is any memory yet: it is taken when the first row is read."""
        return bool(self._stores)

    def _allocate(self, slots: int, length: int) -> None:
        """Empty slots. The old ones are gone before, so that the new ones may lie where they lay."""
        shapes = {
            layer: tuple((each.shape, each.dtype, each.device) for each in pair) for layer, pair in self._stores.items()
        }
        self._stores = {}
        kept, (self.slots, self.length) = (self.slots, self.length), (slots, length)
        try:
            for layer, pair in shapes.items():
                keys, values = (
                    torch.zeros(slots, shape[1], length, shape[3], dtype=dtype, device=device)
                    for shape, dtype, device in pair
                )
                self._stores[layer] = keys, values
        except BaseException:  # they are made when they are next needed
            self._stores = {}
            self.slots, self.length = kept
            raise

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one slot into another."""
        for stores in self._stores.values():
            for store in stores:
                store[target, :, :length] = store[source, :, :length]

    @torch.inference_mode()
    def take(self, slot: int, start: int, end: int) -> list[Tensor]:
        """A copy of a slot's positions: of all stores of one shape in one tensor (stores, heads, positions, size)."""
        return [torch.stack([store[slot, :, start:end] for store in alike]) for alike in self._alike()]

    @torch.inference_mode()
    def put(self, slot: int, start: int, states: list[Tensor], length: int) -> None:
        """Writes the first `length` positions of what `take` gave into a slot, from position `start` on."""
        for alike, state in zip(self._alike(), states, strict=True):
            for store, piece in zip(alike, state, strict=True):
                store[slot, :, start : start + length] = piece[:, :length]

    def _alike(self) -> list[list[Tensor]]:
        """The stores, keys and values, together with those that have their shape, type and device."""
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        for pair in self._stores.values():
            for store in pair:
                found.setdefault((store.shape[1], store.shape[3], store.dtype, store.device), []).append(store)
        return list(found.values())

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Overwrites a slot in which something was no number: a mask hides numbers from later rows, but not NaN."""
        for stores in self._stores.values():
            for store in stores:
                store[slot] = 0

    def _view(self, plan: SlotPlan, layer: int, keys: Tensor, values: Tensor) -> View:
        if layer not in self._stores:
            self._stores[layer] = (self._store(keys), self._store(values))
        heads, device = keys.shape[1], keys.device
        cells = plan.cells.get((heads, device))
        if cells is None:
            first = plan.token_slot.to(device)[:, None] * heads + torch.arange(heads, device=device)
            cells = (first * self.length + plan.token_position.to(device)[:, None]).view(-1)
            plan.cells[heads, device] = cells
        key_store, value_store = self._stores[layer]
        slots = plan.slots
        rows = (key_store[slots], value_store[slots]) if isinstance(slots, slice) else None
        flat = (key_store.view(-1, key_store.shape[-1]), value_store.view(-1, value_store.shape[-1]))
        plan.views[layer] = View(cells, flat, rows)
        return plan.views[layer]

    def _store(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.slots, states.shape[1], self.length, states.shape[3])


def _tokens(plan: SlotPlan, states: Tensor) -> Tensor:
    """The new tokens' heads, row by row (m * heads, head size), out of (n, heads, T, head size)."""
    if plan.queries is not None:
        row, column = (index.to(states.device) for index in plan.queries)
        states = states[row, :, column]
    elif states.shape[2] > 1:
        states = states.transpose(1, 2)
    return states.reshape(-1, states.shape[-1])


def additive_mask(positions: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """The mask (n, 1, T, L) that is added to the attention scores: 0 where a query may look, very negative elsewhere.

    Args:
        positions: Position of each query (n, T). A query looks at the positions up to its own.
        length: Number of key positions L.
        window: A query looks at this many positions at most, its own included. None for all.
        dtype: Of the model. (Boolean masks are silently wrong with eager attention.)
    """
    keys = torch.arange(length, device=positions.device)
    hidden = keys > positions[..., None]
    if window is not None:
        hidden |= keys <= positions[..., None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]
