from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from anchorlm.engine._forms import masked
from anchorlm.engine._pending import PendingCall
from anchorlm.engine._runner import Capture, Runner
from anchorlm.engine._sampling import choose, token_scores
from anchorlm.engine._sequence import LocalSequence
from anchorlm.records import ModelError, TokenScore, UserError

_PADDED = 1.3
"""On real models on a CPU, more padding costs more than further forwards do, and so does less."""


class BatchExecutor:
    """One forward over sequences that wait, and what each of them gets from it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._model = runner.model

    def run(self, batch: list[LocalSequence], counts: list[int]) -> None:
        """Reads the next `counts[i]` tokens of each sequence."""
        calls = [_call(member) for member in batch]
        capture = _capture(batch, calls, counts) if any(call.positions for call in calls) else None
        logits = self._runner.forward([member.row for member in batch], counts, capture)
        # NaN wins every maximum, so one pass both chooses the likeliest tokens and checks all rows.
        best, likeliest = logits.max(dim=-1)
        tokens = likeliest.tolist()
        for value, member, call in zip(best.tolist(), batch, calls, strict=True):
            if not isfinite(value):
                self._reject(member, call)
        if capture is not None:
            self._keep(batch, calls, counts, capture)
        ready: list[tuple[int, int]] = []
        shaped = []
        for index, (member, call) in enumerate(zip(batch, calls, strict=True)):
            if call.positions and not member.row.pending:
                call.known = logits[index].clone()
            if call.future.done() or member.row.pending:
                continue
            if call.sampler is None:
                call.future.set_result(logits[index])
            elif call.sampler.plain:
                ready.append((index, tokens[index]))
            else:
                shaped.append(index)
        logits, unfit = _held(logits, batch, calls, shaped)
        shaped = [index for index in shaped if index not in unfit]
        if shaped:
            samplers = [sampler for index in shaped if (sampler := calls[index].sampler) is not None]
            members = [batch[index] for index in shaped]
            starts = [member.prompt_length for member in members]
            chosen = choose(logits[shaped], samplers, [member.ids for member in members], starts)
            ready += zip(shaped, chosen, strict=True)
        scored = [(index, token) for index, token in ready if _logprobs(calls[index]) is not None]
        scores = _scores(logits, scored, calls)
        for index, token in ready:
            self._advance(batch[index], calls[index], token, scores.get(index))

    def start(self, member: LocalSequence, logits: Tensor) -> None:
        """The first token of a generation from logits (V,) that are known already."""
        call = _call(member)
        if call.sampler is None:
            raise RuntimeError("A sequence that does not generate was started.")
        logits = member.formed(logits, call.sampler.settings)
        if call.sampler.plain:
            token = int(logits.max(dim=-1).indices)
        else:
            token = choose(logits[None], [call.sampler], [member.ids], [member.prompt_length])[0]
        top = _logprobs(call)
        self._advance(member, call, token, None if top is None else token_scores(logits[None], [token], top)[0])

    def _advance(self, member: LocalSequence, call: PendingCall, token: int, score: TokenScore | None) -> None:
        if token in member.stops or (call.sampler is not None and token in call.sampler.settings.stop_token_ids):
            call.stopped = True
        else:
            member.take(token, score)
            call.remaining -= 1
            call.stopped = member.cut()
        ended = call.stopped or not call.remaining
        if call.emit is not None:
            known = len(member.ids) if ended else member.prompt_length + member.settled
            for each in member.ids[call.emitted : known]:
                call.emit(each)
            call.emitted = max(call.emitted, known)
        if ended:
            call.future.set_result(None)

    def _reject(self, member: LocalSequence, call: PendingCall) -> None:
        self._runner.cache.clear(member.row.slot)
        member.row.computed = 0
        if not call.future.done():
            call.future.set_exception(
                ModelError(
                    f"{self._model.name} gave logits that are not numbers: check its weights, "
                    "or load it in bfloat16 or float32."
                )
            )

    @staticmethod
    def _keep(batch: list[LocalSequence], calls: list[PendingCall], counts: list[int], capture: Capture) -> None:
        # Blocks of a model that is spread over devices report from several: everything goes to the last one's.
        device = capture.blocks[len(capture.blocks) - 1].device
        stream = torch.stack([capture.blocks[layer].to(device) for layer in range(len(capture.blocks))]).float()
        width = max(counts)
        for place, (index, column) in enumerate(zip(capture.rows, capture.columns, strict=True)):
            calls[index].found[batch[index].row.computed - width + column] = stream[:, place]
        for place, (index, position) in enumerate(capture.ends):
            part = torch.stack([sums[place].to(device) for _, sums in sorted(capture.sums.items())])
            known = calls[index].sums.get(position)
            calls[index].sums[position] = part if known is None else known + part
        for call in calls:
            if call.positions and call.complete and not call.future.done():
                call.future.set_result(call.activations)


def _held(
    logits: Tensor, batch: list[LocalSequence], calls: list[PendingCall], rows: list[int]
) -> tuple[Tensor, set[int]]:
    """Logits under the response formats of some rows, and the rows whose answer cannot go on in theirs."""
    allowed: dict[int, Tensor] = {}
    unfit: set[int] = set()
    for index in rows:
        sampler = calls[index].sampler
        try:
            mask = None if sampler is None else batch[index].allowed(sampler.settings)
        except UserError as error:
            calls[index].future.set_exception(error)
            unfit.add(index)
            continue
        if mask is not None:
            allowed[index] = mask
    if not allowed:
        return logits, unfit
    which = torch.tensor(list(allowed), device=logits.device)
    return logits.index_copy(0, which, masked(logits[which], list(allowed.values()))), unfit


def _logprobs(call: PendingCall) -> int | None:
    """How many likeliest tokens are to be named with each one; None: nothing is to be known of them."""
    return None if call.sampler is None else call.sampler.settings.logprobs


def _scores(logits: Tensor, chosen: list[tuple[int, int]], calls: list[PendingCall]) -> dict[int, TokenScore]:
    """The scores of chosen tokens (row, token), by row."""
    if not chosen:
        return {}
    rows, tokens = zip(*chosen, strict=True)
    tops = [_logprobs(calls[row]) or 0 for row in rows]
    found = token_scores(logits[list(rows)], tokens, max(tops))
    return {row: replace(one, top=one.top[:top]) for row, one, top in zip(rows, found, tops, strict=True)}


def _capture(batch: list[LocalSequence], calls: list[PendingCall], counts: list[int]) -> Capture:
    """The queries of this forward whose activations are wanted; the others of a long prompt come with later ones."""
    width = max(counts)
    found = Capture([], [])
    for index, (member, call, count) in enumerate(zip(batch, calls, counts, strict=True)):
        start = member.row.computed
        shift = width - count - start
        for position in sorted(set(call.positions)):
            if start <= position < start + count:
                found.rows.append(index)
                found.columns.append(shift + position)
        for first, last in call.spans:
            if (begin := max(first, start)) <= (end := min(last, start + count - 1)):
                found.spans.append((index, shift + begin, shift + end))
                found.ends.append((index, last))
    return found


def batches(waiting: Sequence[LocalSequence], prefill_tokens: int) -> list[tuple[list[LocalSequence], list[int]]]:
    """Splits what waits into forwards: rows of like length together, so little is padded.

    A forward may be padded to `_PADDED` times its real tokens, or to 128 where that is more: a few short rows are
    better run together than apart. A prompt longer than `prefill_tokens` is read in several forwards.
    """
    alive = [member for member in waiting if not _call(member).future.done()]
    if alive and all(member.row.pending == 1 for member in alive):
        return [(sorted(alive, key=_slot), [1] * len(alive))]
    groups: list[list[LocalSequence]] = []
    real = 0
    for member in sorted(alive, key=lambda member: member.row.pending):
        count = min(member.row.pending, prefill_tokens)
        padded = (len(groups[-1]) + 1) * count if groups else 0
        if not groups or padded > max(128, _PADDED * (real + count)) or (count > 1 and padded > prefill_tokens):
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


def _call(member: LocalSequence) -> PendingCall:
    if member.call is None:
        raise RuntimeError("A sequence that waits for nothing was run.")
    return member.call
