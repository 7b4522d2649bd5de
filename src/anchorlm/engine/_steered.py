from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchorlm.engine._batch import SlotRow
from anchorlm.engine._steering import Change, Steering
from anchorlm.records import DefenseError


@dataclass(slots=True)
class _Group:
    """Rows of one forward that share their edits.

    Attributes:
        edits: What is added, by block.
        rows: (n,) indices of the rows.
        weight: (n, T, 1) strength at each query. 0 where a position is left alone.
    """

    edits: Mapping[int, Change]
    rows: Tensor
    weight: Tensor


@contextmanager
def steered(
    blocks: nn.ModuleList,
    rows: Sequence[SlotRow],
    counts: Sequence[int],
    device: torch.device,
    base: Steering | None = None,
) -> Iterator[None]:
    """Steers one forward, in which row i reads its next `counts[i]` tokens (right-aligned).

    Args:
        blocks: Of the model.
        rows: What is read. Each is steered as it says.
        counts: How many tokens of each.
        device: Where the tokens are.
        base: What is done to all rows and positions before that.

    Raises:
        DefenseError: A block that should have been steered was not. The forward's result must not be used.
    """
    groups = _groups(rows, counts, device)
    wanted = sorted({layer for group in groups for layer in group.edits}.union(base.edits if base else ()))
    if any(not 0 <= layer < len(blocks) for layer in wanted):
        raise DefenseError(f"Blocks {wanted} were to be steered, but the model has {len(blocks)}.")
    fired: set[int] = set()
    handles = [blocks[layer].register_forward_hook(_hook(layer, groups, fired, base)) for layer in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(fired) != len(wanted):
        raise DefenseError(
            f"Only {len(fired)} of {len(wanted)} blocks could be steered: load the model without torch.compile, or use "
            "a defense that does not steer."
        )


def _groups(rows: Sequence[SlotRow], counts: Sequence[int], device: torch.device) -> list[_Group]:
    width = max(counts)
    found: dict[int, tuple[Mapping[int, Change], list[int], list[list[float]]]] = {}
    for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
        steering, until = row.steering, row.steered_until
        if steering is None or row.computed >= until or not steering.strength:
            continue
        touched = int(min(count, until - row.computed))
        weight = [0.0] * (width - count) + [steering.strength] * touched + [0.0] * (count - touched)
        _, indices, weights = found.setdefault(id(steering.edits), (steering.edits, [], []))
        indices.append(index)
        weights.append(weight)
    return [
        _Group(edits, torch.tensor(indices, device=device), torch.tensor(weights, device=device)[..., None])
        for edits, indices, weights in found.values()
    ]


def _hook(layer: int, groups: Sequence[_Group], fired: set[int], base: Steering | None) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        if base is not None and layer in base.edits:
            stream = stream + base.strength * base.edits[layer](stream)
        for group in groups:
            if layer in group.edits:
                rows, weight = group.rows.to(stream.device), group.weight.to(stream)
                stream = stream.index_add(0, rows, weight * group.edits[layer](stream[rows]))
        fired.add(layer)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    return hook
