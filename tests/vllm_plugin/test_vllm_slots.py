"""State follows a request: both of vLLM's interfaces, with its own records of what changes in a batch."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anchorlm.engine import LocalEngine
from anchorlm.models import CausalModel
from anchorlm.vllm import Mixer, PluginSettings

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")

ROWS = 4
MIXED = 5
LENGTH = 8
_TEXT = "How do I bake bread? The quick brown fox jumps over the lazy dog."


class Task:
    """One request of the test: what it asks for, and what was written so far."""

    def __init__(self, number: int, model: CausalModel) -> None:
        from vllm import SamplingParams

        self.prompt = model.encode([{"role": "user", "content": _TEXT[number : 3 * number + 2]}])
        alpha = [None, 0.2, 0.5, 0.9][number % 4]
        extra = None if alpha is None else {"anchorlm": {"alpha": alpha, "mixed_tokens": MIXED}}
        self.params = SamplingParams(temperature=0.0, extra_args=extra)
        self.output: list[int] = []


def logits(target: LocalEngine, task: Task) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.tensor([[*task.prompt, *task.output]])
        found: torch.Tensor = target.model.model(input_ids=ids, use_cache=False).logits[0, -1].float()
    return found


def built(target: LocalEngine, anchor: LocalEngine, *of_runner: Any) -> Any:
    """A processor as vLLM builds it, but for what it reads of a server's folder."""
    from anchorlm.vllm.processor import AnchorProcessor

    settings = PluginSettings.parse({"anchor": "nowhere", "mixing": {"gate": "always"}}, where="a test")

    class Here(AnchorProcessor):
        def _load(self, config: Any) -> Mixer:
            return Mixer(target.model, anchor, settings)

    return Here(SimpleNamespace(), *of_runner)


@pytest.fixture(scope="module")
def alone(target: LocalEngine, anchor: LocalEngine) -> dict[int, list[int]]:
    """What every request writes when it is alone in the server."""
    found = {}
    for number in range(16):
        one = older(target, anchor, [[number]])
        found[number] = one[number]
    assert len({tuple(tokens) for tokens in found.values()}) > 8
    return found


def older(target: LocalEngine, anchor: LocalEngine, waves: list[list[int]], seed: int = 0) -> dict[int, list[int]]:
    """Runs requests that come in waves through the older interface, in rows that are reused and moved."""
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality
    from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder

    chance = random.Random(seed)
    processor = built(target, anchor, torch.device("cpu"), False)
    update, waiting = BatchUpdateBuilder(), [number for wave in waves for number in wave]
    rows: dict[int, int] = {}
    tasks = {number: Task(number, target.model) for number in waiting}
    while waiting or rows:
        for row in [row for row, number in rows.items() if len(tasks[number].output) >= LENGTH]:
            del rows[row]
            update.removed_append(row)
        while waiting and len(rows) < ROWS and (not rows or chance.random() < 0.6):
            free = update.pop_removed()
            row = next(row for row in range(ROWS) if row not in rows) if free is None else free
            rows[row] = waiting.pop(0)
            task = tasks[rows[row]]
            update.added.append((row, task.params, task.prompt, task.output))
        for row in range(len(rows)):  # without holes, as the server keeps it
            if row not in rows:
                last = max(rows)
                rows[row] = rows.pop(last)
                update.moved.append((last, row, MoveDirectionality.UNIDIRECTIONAL))
        if len(rows) > 1 and chance.random() < 0.5:
            one, other = chance.sample(sorted(rows), 2)
            rows[one], rows[other] = rows[other], rows[one]
            update.moved.append((one, other, MoveDirectionality.SWAP))
        processor.update_state(update.get_and_reset(len(rows)))
        if rows:
            batch = torch.stack([logits(target, tasks[rows[row]]) for row in sorted(rows)])
            chosen = processor.apply(batch).argmax(-1).tolist()
            for row, token in zip(sorted(rows), chosen, strict=True):
                tasks[rows[row]].output.append(token)
    processor.update_state(update.get_and_reset(0))
    assert anchor._scheduler.taken == 0
    return {number: task.output for number, task in tasks.items()}


def newer(target: LocalEngine, anchor: LocalEngine, waves: list[list[int]], seed: int = 0) -> dict[int, list[int]]:
    """The same through the newer interface: rows are in another order at every step, slots are reused unasked."""
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    chance = random.Random(seed)
    ids = torch.zeros(ROWS, 256, dtype=torch.int32)
    requests = SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=ids), prompt_len=SimpleNamespace(np=np.zeros(ROWS, dtype=np.int32))
    )
    processor = built(target, anchor, requests)
    slots: dict[int, int] = {}
    waiting = [number for wave in waves for number in wave]
    tasks = {number: Task(number, target.model) for number in waiting}
    while waiting or slots:
        slots = {slot: number for slot, number in slots.items() if len(tasks[number].output) < LENGTH}
        while waiting and len(slots) < ROWS and (not slots or chance.random() < 0.6):
            slot = chance.choice([slot for slot in range(ROWS) if slot not in slots])
            slots[slot] = waiting.pop(0)
            task = tasks[slots[slot]]
            assert processor.add_request(slot, task.params) is (task.params.extra_args is not None)
            requests.prompt_len.np[slot] = len(task.prompt)
            ids[slot, : len(task.prompt)] = torch.tensor(task.prompt)
        order = chance.sample(sorted(slots), len(slots))
        if not order:
            break
        here = [tasks[slots[slot]] for slot in order]
        lengths = torch.tensor([len(task.prompt) + len(task.output) for task in here])
        index = torch.tensor(order)
        ctx = LogitsContext(index, index, index.numpy(), torch.zeros_like(index), index, lengths - 1, lengths.numpy())
        processor.apply_staged_writes()
        chosen = processor.apply(torch.stack([logits(target, task) for task in here]), ctx).argmax(-1).tolist()
        for slot, task, token in zip(order, here, chosen, strict=True):
            ids[slot, len(task.prompt) + len(task.output)] = token
            task.output.append(token)
    return {number: task.output for number, task in tasks.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("runner", [older, newer])
def test_a_request_writes_what_it_writes_alone_whatever_comes_goes_and_moves(
    target: LocalEngine, anchor: LocalEngine, alone: dict[int, list[int]], runner: Any, seed: int
) -> None:
    numbers = random.Random(seed).sample(range(16), 16)
    assert runner(target, anchor, [numbers], seed) == {number: alone[number] for number in numbers}


def test_the_class_is_taken_by_both_runners() -> None:
    from vllm.v1.sample.logits_processor import LogitsProcessor as Older
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as Newer

    from anchorlm.vllm.processor import AnchorProcessor, NamedProcessor

    for one in (AnchorProcessor, NamedProcessor):
        assert issubclass(one, Older)
        assert issubclass(one, Newer)
