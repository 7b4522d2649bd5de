from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from anchorlm.engine import LocalEngine, runtime
from anchorlm.engine._batch import SlotRow
from anchorlm.engine._runner import Capture


@dataclass(frozen=True)
class Forward:
    """The shape of one forward: per row its slot, the tokens it had read, and those that it read."""

    rows: tuple[tuple[int, int, int], ...]


class Recorder:
    """Notes the shape of every forward of an engine, and can run the same shapes again, bare."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.forwards: list[Forward] = []
        self.recording = True
        self._forward = engine.runner.forward
        engine.runner.forward = self._record  # type: ignore[method-assign]

    def _record(self, rows: Sequence[SlotRow], counts: Sequence[int], capture: Capture | None = None) -> Tensor:
        if self.recording:
            shape = tuple((row.slot, row.computed, count) for row, count in zip(rows, counts, strict=True))
            self.forwards.append(Forward(shape))
        return self._forward(rows, counts, capture)

    def take(self) -> list[Forward]:
        """The forwards since the last call."""
        taken, self.forwards = self.forwards, []
        return taken

    def replay(self, forwards: list[Forward]) -> float:
        """Seconds of the same forwards with nothing around them, run where the engine runs."""
        return runtime().run(self._replay(forwards))

    async def _replay(self, forwards: list[Forward]) -> float:
        calls = [
            ([SlotRow(slot, [5] * (start + count), start) for slot, start, count in forward.rows],
             [count for _, _, count in forward.rows])
            for forward in forwards
        ]  # fmt: skip
        start = perf_counter()
        for rows, counts in calls:
            self._forward(rows, counts)
        if self.engine.model.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - start
