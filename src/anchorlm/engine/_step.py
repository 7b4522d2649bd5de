from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from anchorlm.engine._runner import Capture, Runner
from anchorlm.engine._sampling import choose, token_scores
from anchorlm.engine._sequence import LocalSequence, Want
from anchorlm.records import ModelError, TokenScore


class Step:
    """One forward over sequences that wait, and what each of them gets from it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._model = runner.model

    def run(self, batch: list[LocalSequence], counts: list[int]) -> None:
        """Reads the next `counts[i]` tokens of each sequence."""
        wants = [_want(member) for member in batch]
        capture = _capture(batch, wants, counts) if any(want.positions for want in wants) else None
        logits = self._runner.forward([member.row for member in batch], counts, capture)
        # NaN wins every maximum, so that one pass both chooses the likeliest tokens and checks all rows.
        best, likeliest = logits.max(dim=-1)
        tokens = likeliest.tolist()
        for value, member, want in zip(best.tolist(), batch, wants, strict=True):
            if not isfinite(value):
                self._reject(member, want)
        if capture is not None:
            self._keep(batch, wants, counts, capture)
        ready: list[tuple[int, int]] = []
        shaped = []
        for index, (member, want) in enumerate(zip(batch, wants, strict=True)):
            if want.positions and not member.row.pending:
                want.known = logits[index].clone()
            if want.future.done() or member.row.pending:
                continue
            if want.sampler is None:
                want.future.set_result(logits[index])
            elif want.sampler.plain:
                ready.append((index, tokens[index]))
            else:
                shaped.append(index)
        if shaped:
            samplers = [sampler for index in shaped if (sampler := wants[index].sampler) is not None]
            chosen = choose(logits[shaped], samplers, [batch[index].ids for index in shaped])
            ready += zip(shaped, chosen, strict=True)
        scored = [(index, token) for index, token in ready if _logprobs(wants[index]) is not None]
        scores = _scores(logits, scored, wants)
        for index, token in ready:
            self._advance(batch[index], wants[index], token, scores.get(index))

    def start(self, member: LocalSequence, logits: Tensor) -> None:
        """The first token of a generation from logits (V,) that are known already."""
        want = _want(member)
        if want.sampler is None:
            raise RuntimeError("A sequence that does not generate was started.")
        plain = want.sampler.plain
        token = int(logits.max(dim=-1).indices) if plain else choose(logits[None], [want.sampler], [member.ids])[0]
        top = _logprobs(want)
        self._advance(member, want, token, None if top is None else token_scores(logits[None], [token], top)[0])

    def _advance(self, member: LocalSequence, want: Want, token: int, score: TokenScore | None) -> None:
        if token in member.stops:
            want.stopped = True
        else:
            member.take(token, score)
            want.remaining -= 1
            want.stopped = member.cut()
        ended = want.stopped or not want.remaining
        if want.emit is not None:
            known = len(member.ids) if ended else member.prompt_length + member.settled
            for each in member.ids[want.emitted : known]:
                want.emit(each)
            want.emitted = max(want.emitted, known)
        if ended:
            want.future.set_result(None)

    def _reject(self, member: LocalSequence, want: Want) -> None:
        self._runner.cache.clear(member.row.slot)
        member.row.computed = 0
        if not want.future.done():
            want.future.set_exception(
                ModelError(
                    f"{self._model.name} gave logits that are not numbers: check its weights, "
                    "or load it in bfloat16 or float32."
                )
            )

    @staticmethod
    def _keep(batch: list[LocalSequence], wants: list[Want], counts: list[int], capture: Capture) -> None:
        # Blocks of a model that is spread over devices report from several: everything goes to the last one's.
        device = capture.blocks[len(capture.blocks) - 1].device
        stream = torch.stack([capture.blocks[layer].to(device) for layer in range(len(capture.blocks))]).float()
        width = max(counts)
        for place, (index, column) in enumerate(zip(capture.rows, capture.columns, strict=True)):
            want, row = wants[index], batch[index].row
            want.found[row.computed - width + column] = stream[:, place]
            if len(want.found) == len(set(want.positions)) and not want.future.done():
                want.future.set_result(torch.stack([want.found[position] for position in want.positions], dim=1))


def _logprobs(want: Want) -> int | None:
    """How many likeliest tokens are to be named with each one; None: nothing is to be known of them."""
    return None if want.sampler is None else want.sampler.settings.logprobs


def _scores(logits: Tensor, chosen: list[tuple[int, int]], wants: list[Want]) -> dict[int, TokenScore]:
    """The scores of chosen tokens (row, token), by row."""
    if not chosen:
        return {}
    rows, tokens = zip(*chosen, strict=True)
    tops = [_logprobs(wants[row]) or 0 for row in rows]
    found = token_scores(logits[list(rows)], tokens, max(tops))
    return {row: replace(one, top=one.top[:top]) for row, one, top in zip(rows, found, tops, strict=True)}


def _capture(batch: list[LocalSequence], wants: list[Want], counts: list[int]) -> Capture:
    """The queries of this forward whose activations are wanted; the others of a long prompt come with later ones."""
    width = max(counts)
    rows, columns = [], []
    for index, (member, want, count) in enumerate(zip(batch, wants, counts, strict=True)):
        start = member.row.computed
        for position in sorted(set(want.positions)):
            if start <= position < start + count:
                rows.append(index)
                columns.append(width - count + position - start)
    return Capture(rows, columns)


def batches(waiting: Sequence[LocalSequence], prefill_tokens: int) -> list[tuple[list[LocalSequence], list[int]]]:
    """Splits what waits into forwards: rows of like length together, so that little is padded.

    A forward may be padded to twice its real tokens, or to 128 where that is more: a few short rows are better run
    together than apart. A prompt longer than `prefill_tokens` is read in several forwards.
    """
    alive = [member for member in waiting if not _want(member).future.done()]
    if alive and all(member.row.pending == 1 for member in alive):
        return [(sorted(alive, key=_slot), [1] * len(alive))]
    groups: list[list[LocalSequence]] = []
    real = 0
    for member in sorted(alive, key=lambda member: member.row.pending):
        count = min(member.row.pending, prefill_tokens)
        padded = (len(groups[-1]) + 1) * count if groups else 0
        if not groups or padded > max(128, 2 * (real + count)) or (count > 1 and padded > prefill_tokens):
            groups.append([])
            real = 0
        groups[-1].append(member)
        real += count
    result = []
    for group in groups:
        group.sort(key=_slot)
        result.append((group, [min(member.row.pending, prefill_tokens) for member in group]))
    return result


def _slot(member: LocalSequence) -> int:
    return member.row.slot


def _want(member: LocalSequence) -> Want:
    if member.want is None:
        raise RuntimeError("A sequence that waits for nothing was run.")
    return member.want
