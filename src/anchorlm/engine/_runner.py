from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anchorlm.engine._batch import Batcher, SlotRow
from anchorlm.engine._served import attention_windows, unserved
from anchorlm.engine._slots import SlotCache
from anchorlm.engine._steered import steered
from anchorlm.engine._steering import Steering
from anchorlm.models import CausalModel
from anchorlm.records import DefenseError

_NOTHING = nullcontext()


@dataclass(slots=True)
class Capture:
    """The residual stream at some queries of one forward.

    Attributes:
        rows: Row of each query in the batch.
        columns: Column of each query in the batch.
        spans: Row, first and last column of queries whose activations are added up.
        ends: Row of each span, and the position that it belongs to.
        blocks: Per block (queries, H).
        sums: Per block (spans, H), float32.
    """

    rows: list[int]
    columns: list[int]
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, layer: int, stream: Tensor) -> None:
        """What is wanted of a block's output (n, T, H)."""
        self.blocks[layer] = stream[self.rows, self.columns]
        if not self.spans:
            return
        rows, first, last = torch.tensor(self.spans, device=stream.device).T
        running = stream.float().cumsum(dim=1)
        before = running[rows, first - 1] * (first > 0)[:, None]
        self.sums[layer] = running[rows, last] - before


class Runner:
    """Runs one model over rows in slots: the one place where forwards happen."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.base: Steering | None = None
        self.cache = SlotCache()
        self.forwards = 0
        self._silent: Tensor | None = None
        windows = attention_windows(model)
        self._one_mask = next(iter(windows)) if len(windows) == 1 else None
        self._batcher = Batcher(self.cache, windows, model.model.get_input_embeddings().weight.dtype, model.device)

    @torch.inference_mode()
    def forward(self, rows: Sequence[SlotRow], counts: Sequence[int], capture: Capture | None = None) -> Tensor:
        """Lets the model read the next `counts[i]` pending tokens of each row.

        Returns:
            Logits (n, V) after the last token read of each row, in float32 on the model's device.

        Raises:
            DefenseError: Activations are wanted or to be steered, but blocks of the model are out of reach.
        """
        batch = self._batcher.step(rows) if max(counts) == 1 else self._batcher.read(rows, counts)
        self.cache.plan = batch.plan
        # Steering comes first, so what is captured is what the next block reads.
        steering = (
            steered(self.model.blocks, rows, counts, self.model.device, self.base)
            if self.base is not None or any(row.computed < row.steered_until for row in rows)
            else _NOTHING
        )
        with steering, _hooks(self.model.blocks, capture) if capture is not None else _NOTHING:
            output = self.model.model(
                **self._inputs(batch.tokens, rows, counts),
                attention_mask=batch.masks if self._one_mask is None else batch.masks[self._one_mask],
                position_ids=batch.positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=self._last(batch.tokens.shape[1]),
            )
        self.forwards += 1
        if capture is not None and len(capture.blocks) != len(self.model.blocks):
            raise DefenseError(
                f"Only {len(capture.blocks)} of {len(self.model.blocks)} blocks of {self.model.name} reported their "
                "activations: load the model without torch.compile, or use a defense that needs none."
            )
        for row, count in zip(rows, counts, strict=True):
            row.computed += count
        logits: Tensor = output.logits[:, -1].float()
        return self._audible(logits)

    def _last(self, width: int) -> Tensor:
        """Which column's logits are wanted. As an index, because of a slice torch multiplies a copy of the head a row.

        The copy is made where the head is frozen, on CPUs (torch 2.13), and costs more than the model in bfloat16.
        """
        return torch.tensor([width - 1], device=self.model.device)

    def _audible(self, logits: Tensor) -> Tensor:
        """Logits (n, V) under which nothing is chosen that is no token."""
        if not self.model.silent_ids:
            return logits
        if self._silent is None or self._silent.device != logits.device:
            self._silent = torch.tensor(self.model.silent_ids, device=logits.device)
        return logits.index_fill(-1, self._silent, -torch.inf)

    def _inputs(self, tokens: Tensor, rows: Sequence[SlotRow], counts: Sequence[int]) -> dict[str, Tensor]:
        """The tokens, or their embeddings where a row brings some of its own (images in the prompt)."""
        if all(row.embeddings is None or row.computed >= len(row.embeddings) for row in rows):
            return {"input_ids": tokens}
        embedded = self.model.model.get_input_embeddings()(tokens).clone()
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            if row.embeddings is not None:
                own = row.embeddings[row.computed : row.computed + count].to(embedded)
                start = tokens.shape[1] - count
                embedded[index, start : start + len(own)] = own
        return {"inputs_embeds": embedded}

    @torch.inference_mode()
    def check(self) -> None:
        """Compares a few ragged steps in slots with the model's own cache-free forward.

        Raises:
            UserError: The architecture gives other logits in slots, so it cannot be served.
        """
        generator = torch.Generator().manual_seed(0)
        size = self.model.vocabulary.size
        texts = [torch.randint(size, (n,), generator=generator).tolist() for n in (7, 4)]
        rows = [SlotRow(slot, tokens) for slot, tokens in enumerate(texts)]
        self.cache.resize(2, 8, 0, 0)
        try:
            self.forward(rows, [3, 2])
            self.forward(rows, [3, 1])
            got = self.forward(rows, [1, 1])
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            what = str(error).strip().partition("\n")[0]
            raise unserved(self.model, f"its forward fails there ({what})") from None
        for row, tokens in zip(got, texts, strict=True):
            want = self.model.model(input_ids=torch.tensor([tokens], device=self.model.device), use_cache=False)
            expected = want.logits[0, -1].float()
            if not expected.isfinite().all():
                continue  # weights that are no numbers are reported when someone asks for logits
            heard = ~row.isneginf()
            worst = float((row - expected)[heard].abs().max()) / (float(expected.std()) + 1e-6)
            # Half precision rounds differently along another path; a wrong mask or position is off by whole spreads.
            if not worst < (0.25 if self.model.rounds else 1e-3):
                raise unserved(self.model, f"its logits differ there by {worst:.1g} standard deviations")


@contextmanager
def _hooks(blocks: nn.ModuleList, capture: Capture) -> Iterator[None]:
    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            capture.keep(layer, stream)

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
