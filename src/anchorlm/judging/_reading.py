from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORTH = 0.7
"""Beginnings are read once where that leaves at most this share of the tokens to read, padding included."""

_AGREE = 1e-2
"""Reading a beginning once must give the same logits but for rounding. Half precision rounds this coarsely."""


class Reader:
    """Runs a classifier on rows of tokens. Rows of one call read their common beginning once, if the model can.

    Whether it can is not asked of its configuration: the first rows of one call, and of several, are read both ways,
    and a model that then answers otherwise, or not at all, reads every row whole from there on. Encoders, which look
    both ways, do.

    Args:
        model: A sequence classifier.
        tokenizer: Pads on the right.

    Attributes:
        forwards: Of the model so far.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.forwards = 0
        self._model: Any = model
        self._tokenizer = tokenizer
        self._shares: dict[bool, bool] = {}  # with one beginning, and with several, which are padded

    @torch.inference_mode()
    def logits(self, rows: Sequence[list[int]], types: Sequence[list[int]], calls: Sequence[int]) -> Tensor:
        """What the head says of each row (B, L), in float32.

        Args:
            rows: Token ids.
            types: Token types of each row. Empty where the tokenizer has none.
            calls: Of which call each row is. Rows of one call stand together.
        """
        beginnings = _Beginnings.of(rows, calls)
        ends_as_padding = any(row[-1] == self._tokenizer.pad_token_id for row in rows)  # where would the head look?
        several = len(beginnings.heads) > 1
        if self._shares.get(several) is False or any(types) or ends_as_padding or not beginnings.worth_it:
            return self._whole(rows, types)
        try:
            shared = self._shared(beginnings)
        except Exception:  # no cache, or no positions that can be given: models of all kinds come here
            self._shares = {False: False, True: False}
            return self._whole(rows, types)
        if several in self._shares:
            return shared
        whole = self._whole(rows, types)
        self._shares[several] = torch.allclose(shared, whole, rtol=_AGREE, atol=_AGREE)
        return whole

    def _whole(self, rows: Sequence[list[int]], types: Sequence[list[int]]) -> Tensor:
        given = {"input_ids": list(rows)} | ({"token_type_ids": list(types)} if any(types) else {})
        self.forwards += 1
        logits: Tensor = self._model(**self._padded(given)).logits
        return logits.float()

    def _shared(self, beginnings: _Beginnings) -> Tensor:
        """Two forwards: the beginnings, padded on the left, and what follows them, padded on the right."""
        device = self._model.device
        ids, seen = (part.to(device) for part in beginnings.padded())
        self.forwards += 2
        cache = self._model(
            input_ids=ids, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0), use_cache=True
        ).past_key_values
        index = torch.tensor(beginnings.index, device=device)
        cache.batch_select_indices(index)
        rest = self._padded({"input_ids": beginnings.rests})
        mask = torch.cat([seen[index], rest["attention_mask"]], dim=1)
        logits: Tensor = self._model(
            input_ids=rest["input_ids"],
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1)[:, seen.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits.float()

    def _padded(self, rows: dict[str, list[list[int]]]) -> dict[str, Tensor]:
        return dict(self._tokenizer.pad(rows, return_tensors="pt").to(self._model.device))


@dataclass(frozen=True, slots=True)
class _Beginnings:
    """Rows of tokens as common beginnings and what follows. Something follows in every row.

    Attributes:
        heads: The beginning of each call's rows.
        rests: What follows, row by row.
        index: Which beginning each row has.
    """

    heads: list[list[int]]
    rests: list[list[int]]
    index: list[int]

    @classmethod
    def of(cls, rows: Sequence[list[int]], calls: Sequence[int]) -> Self:
        heads, rests, index = list[list[int]](), list[list[int]](), list[int]()
        for _, group in groupby(zip(calls, rows, strict=True), lambda one: one[0]):
            own = [row for _, row in group]
            first, last = min(own), max(own)  # what these two share, all between them do
            most = min(len(row) for row in own) - 1
            differ = (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
            length = min(most, next(differ, most))
            index += [len(heads)] * len(own)
            heads.append(first[:length])
            rests += [row[length:] for row in own]
        return cls(heads, rests, index)

    @property
    def worth_it(self) -> bool:
        """Whether there is much less to read so."""
        if not all(self.heads):
            return False
        longest = max(map(len, self.rests))
        whole = max(len(self.heads[at]) + len(rest) for at, rest in zip(self.index, self.rests, strict=True))
        shared = len(self.heads) * max(map(len, self.heads)) + len(self.rests) * longest
        return shared <= _WORTH * len(self.rests) * whole

    def padded(self) -> tuple[Tensor, Tensor]:
        """The beginnings as token ids and mask (calls, T), padded on the left."""
        width = max(map(len, self.heads))
        ids = [[head[0]] * (width - len(head)) + head for head in self.heads]
        mask = [[0] * (width - len(head)) + [1] * len(head) for head in self.heads]
        return torch.tensor(ids), torch.tensor(mask)
