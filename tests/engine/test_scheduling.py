from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import greedy, random_ids, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import LocalEngine, _scheduler, runtime
from anchorlm.engine._batch import SlotRow
from anchorlm.engine._executor import batches
from anchorlm.records import GenerationSettings, UserError

MODEL = tiny_model("llama")


def run(coroutine: Any) -> Any:
    return runtime().run(asyncio.wait_for(coroutine, 60))  # a lost wake-up fails instead of hanging


async def write(engine: LocalEngine, prompt: list[int], new: int = 8, rows: int = 1) -> list[int]:
    async with engine.open(prompt, rows=rows, room=new) as sequence:
        return list((await sequence.generate(GenerationSettings(max_new_tokens=new))).token_ids)


def emptied(engine: LocalEngine) -> bool:
    scheduler = engine._scheduler
    return not (scheduler.taken or scheduler._groups or scheduler._queue or engine._waiting)


def test_rows_that_wait_at_the_same_moment_share_their_forwards() -> None:
    engine = LocalEngine(MODEL)
    prompts = random_ids(5, 6, 7, 5, 6, 7, 4, 4)
    before = engine.runner.forwards

    async def together() -> None:
        await asyncio.gather(*(write(engine, prompt, 10) for prompt in prompts))

    run(together())
    assert engine.runner.forwards - before <= 11


def test_memory_stays_within_its_bounds_and_work_beyond_them_waits_in_order() -> None:
    engine = LocalEngine(MODEL, max_rows=3, max_tokens=90)
    prompts = random_ids(4, 18, 7, 12, 5, 9, 16, 3, 11)
    admitted: list[int] = []
    most = {"rows": 0, "cells": 0}

    async def one(number: int, prompt: list[int]) -> list[int]:
        async with engine.open(prompt, rows=1 + number % 2, room=8) as sequence:
            admitted.append(number)
            fork = sequence.fork() if number % 2 else None
            cache = engine.runner.cache
            most["rows"] = max(most["rows"], engine._scheduler.taken)
            most["cells"] = max(most["cells"], cache.slots * cache.length)
            text = await sequence.generate(GenerationSettings(max_new_tokens=8))
            assert fork is None or fork.ids == prompt
            return list(text.token_ids)

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(one(*each) for each in enumerate(prompts)))

    assert run(together()) == [greedy(MODEL.model, prompt, 8) for prompt in prompts]
    assert admitted == sorted(admitted)
    assert most["rows"] == 3
    assert most["cells"] <= 90
    assert all(store.shape[0] * store.shape[2] <= 90 for pair in engine.runner.cache._stores.values() for store in pair)
    assert emptied(engine)


def test_a_cancelled_request_leaves_at_once_wherever_it_waits() -> None:
    engine = LocalEngine(MODEL, max_rows=2)
    prompts = random_ids(6, 6, 6, 6)

    async def go() -> None:
        first = asyncio.ensure_future(write(engine, prompts[0], 200))
        second = asyncio.ensure_future(write(engine, prompts[1], 30, rows=1))
        queued = asyncio.ensure_future(write(engine, prompts[2], 8))
        last = asyncio.ensure_future(write(engine, prompts[3], 8))
        while len(engine._waiting) < 2:
            await asyncio.sleep(0)
        before = set(engine._waiting)
        queued.cancel()  # in the queue
        first.cancel()  # in the middle of its text
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(before & set(engine._waiting)) == 1
        assert await second == greedy(MODEL.model, prompts[1], 30)
        assert await last == greedy(MODEL.model, prompts[3], 8)
        assert queued.cancelled()
        assert first.cancelled()

    run(go())
    assert emptied(engine)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_no_order_of_starts_and_cancellations_loses_a_wake_up(plan: list[tuple[int, int, int]]) -> None:
    engine = LocalEngine(MODEL, max_rows=2)

    async def one(length: int, start: int) -> list[int]:
        for _ in range(start):
            await asyncio.sleep(0)
        return await write(engine, list(range(5, 5 + length)), 6)

    async def go() -> None:
        tasks = [asyncio.ensure_future(one(length, start)) for length, start, _ in plan]
        for step in range(41):
            for task, (_, _, cancel) in zip(tasks, plan, strict=True):
                if cancel == step and cancel % 2:
                    task.cancel()
            await asyncio.sleep(0)
        for task, (length, _, cancel) in zip(tasks, plan, strict=True):
            try:
                assert await task == greedy(MODEL.model, list(range(5, 5 + length)), 6)
            except asyncio.CancelledError:
                assert cancel % 2

    run(go())
    assert emptied(engine)


def test_requests_that_hold_one_engine_and_want_another_do_not_block_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_scheduler, "_PAUSE", 0.002)
    left, right = LocalEngine(MODEL, max_rows=1), LocalEngine(tiny_model("gpt2"), max_rows=1)
    prompt = random_ids(7)[0]

    async def both(outer: LocalEngine, inner: LocalEngine) -> tuple[list[int], list[int]]:
        async with outer.open(prompt, room=8) as sequence:
            begun = await sequence.generate(GenerationSettings(max_new_tokens=3))
            inside = await write(inner, prompt)
            rest = await sequence.generate(GenerationSettings(max_new_tokens=5))
            return [*begun.token_ids, *rest.token_ids], inside

    async def go() -> None:
        crossed = await asyncio.gather(both(left, right), both(right, left), both(left, right))
        nested = await asyncio.gather(both(left, left), both(left, left))
        texts = {id(engine): greedy(engine.model.model, prompt, 8) for engine in (left, right)}
        for (outer, inner), (text, inside) in zip(
            [(left, right), (right, left), (left, right), (left, left), (left, left)], crossed + nested, strict=True
        ):
            assert (text, inside) == (texts[id(outer)], texts[id(inner)])

    run(go())
    assert emptied(left)
    assert emptied(right)


async def guided(outer: LocalEngine, inner: LocalEngine, prompt: list[int]) -> list[list[int]]:
    """Two candidates of five mixed tokens and three of the outer engine alone, in the manner of AlignBeam."""
    texts = []
    async with outer.open(prompt, rows=2, room=8) as one:
        await asyncio.sleep(0.001)  # others come in between
        async with inner.open(prompt, rows=2, room=5) as other:
            await asyncio.gather(one.logits(), other.logits())
            for first, second, start in ((one, other, 7), (one.fork(), other.fork(), 8)):
                token = start
                for _ in range(5):
                    first.append([token])
                    second.append([token])
                    p, q = await asyncio.gather(first.logits(), second.logits())
                    token = int((p + q)[3:300].argmax()) + 3
                second.close()
                await first.generate(GenerationSettings(max_new_tokens=3))
                texts.append(first.ids)
    return texts


async def guided_all(pairs: list[tuple[LocalEngine, LocalEngine]], prompts: list[list[int]]) -> list[list[list[int]]]:
    return await asyncio.gather(*(guided(*pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)))


def reads(engine: LocalEngine, pause: float = 0.0) -> list[int]:
    """Fills up with the number of tokens of each forward; each of them takes `pause` seconds more."""
    forward, seen = engine.runner.forward, []

    def counted(rows: list[SlotRow], counts: list[int], *more: object) -> torch.Tensor:
        seen.append(sum(counts))
        time.sleep(pause)
        return forward(rows, counts, *more)  # type: ignore[arg-type]

    engine.runner.forward = counted  # type: ignore[method-assign, assignment]
    return seen


@pytest.mark.parametrize("rows", [2, 4])
def test_many_requests_that_hold_two_engines_in_opposite_order_all_end_without_reading_again_and_again(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(_scheduler, "_PAUSE", 0.002)
    left, right = LocalEngine(MODEL, max_rows=rows), LocalEngine(tiny_model("gpt2"), max_rows=rows)
    pairs = [(left, right), (right, left)] * 3
    prompts = random_ids(*range(30, 36))
    seen = [reads(left), reads(right)]
    alone = [run(guided(*pair, prompt)) for pair, prompt in zip(pairs, prompts, strict=True)]
    needed = sum(map(sum, seen))
    assert run(guided_all(pairs, prompts)) == alone
    # Whoever gives way reads its prompt again; if engines only swapped their blockades, it would at every token.
    assert sum(map(sum, seen)) - needed <= needed + sum(map(len, prompts))
    assert emptied(left)
    assert emptied(right)


def test_long_forwards_of_one_engine_cost_nobody_a_seat_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scheduler, "_PAUSE", 0.001)
    fast, slow = LocalEngine(MODEL, max_rows=1), LocalEngine(tiny_model("gpt2"), max_rows=1)
    seen = reads(fast)
    reads(slow, pause=50 * _scheduler._PAUSE)
    prompts = random_ids(5, 6, 7)

    async def one(prompt: list[int]) -> None:
        async with fast.open(prompt, room=3) as outer, slow.open(prompt, room=5) as inner:
            await outer.logits()
            await inner.generate(GenerationSettings(max_new_tokens=5))
            await outer.generate(GenerationSettings(max_new_tokens=3))

    async def together() -> None:
        await asyncio.gather(*map(one, prompts))

    for prompt in prompts:
        run(one(prompt))
    needed = sum(seen)
    run(together())
    assert sum(seen) == 2 * needed


def test_seats_of_closed_rows_are_free_before_their_context_ends() -> None:
    engine = LocalEngine(MODEL, max_rows=2)

    async def go() -> None:
        async with engine.open([5, 6], rows=2) as one:
            other = one.fork()
            one.close()
            assert (await other.logits()).shape == (320,)
            other.close()
            assert await write(engine, [7, 8], rows=2) == greedy(MODEL.model, [7, 8], 8)

    run(go())
    assert emptied(engine)


def test_a_text_that_nobody_reads_to_its_end_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scheduler, "_PAUSE", 0.002)
    engine = LocalEngine(MODEL, max_rows=1)

    async def go() -> None:
        async with engine.open([5, 6, 7], room=8) as sequence:
            tokens = sequence.stream(GenerationSettings(max_new_tokens=8))
            written = [await anext(tokens)]
            assert await write(engine, [8, 9]) == greedy(MODEL.model, [8, 9], 8)
            written += [token async for token in tokens]
            assert written == greedy(MODEL.model, [5, 6, 7], 8)

    run(go())
    assert emptied(engine)


def test_a_sequence_that_is_closed_while_it_gets_its_seat_back_keeps_none() -> None:
    engine = LocalEngine(MODEL, max_rows=1)

    async def go() -> None:
        async with engine.open([5, 6]) as one:
            engine._scheduler.dismiss(one.group)  # as after a stall
            async with engine.open([7, 8]) as other:
                waiting = asyncio.ensure_future(one.logits())
                while not engine._scheduler._queue:
                    await asyncio.sleep(0)
                other.close()
                one.close()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    run(go())
    assert emptied(engine)


def test_an_exception_in_a_forward_reaches_who_waited_and_nobody_else() -> None:
    engine = LocalEngine(MODEL)
    forward = engine.runner.forward

    def failing(*arguments: object) -> torch.Tensor:
        engine.runner.forward = forward  # type: ignore[method-assign]
        raise ValueError("broken")

    async def go() -> None:
        async with engine.open([5, 6, 7], room=8) as sequence:
            engine.runner.forward = failing  # type: ignore[method-assign, assignment]
            with pytest.raises(ValueError, match="broken"):
                await sequence.logits()
            text = await sequence.generate(GenerationSettings(max_new_tokens=8))
            assert list(text.token_ids) == greedy(MODEL.model, [5, 6, 7], 8)

    run(go())
    assert emptied(engine)


CPU_IS_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_IS_FULL], ids=["gpu", "cpu"])
def test_running_out_of_memory_is_a_sentence(error: RuntimeError) -> None:
    engine = LocalEngine(MODEL)

    def full(*arguments: object) -> torch.Tensor:
        raise error

    engine.runner.forward = full  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match="lower max_tokens"):
        run(write(engine, [5, 6]))


def test_a_request_for_which_there_is_no_memory_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(MODEL, max_rows=10**13, max_tokens=10**15)
    cache = engine.runner.cache
    allocate, allocated = torch.Tensor.new_zeros, []

    def nearly_full(store: torch.Tensor, *size: int) -> torch.Tensor:
        allocated.append(size)
        if len(allocated) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return allocate(store, *size)

    async def go() -> None:
        async with engine.open([5, 6, 7], room=20) as sequence:
            tokens = sequence.stream(GenerationSettings(max_new_tokens=20))
            written = [await anext(tokens)]
            whole = cache.slots, cache.length, [store.shape for pair in cache._stores.values() for store in pair]
            with pytest.raises(UserError, match=r"rows of 12 tokens: lower max_new_tokens or .* max_tokens"):
                await write(engine, [8, 9, 10, 11], rows=10**12)  # more than any machine has
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "new_zeros", nearly_full)
                with pytest.raises(UserError, match="ran out of memory making room for 9 rows"):
                    await write(engine, [8, 9, 10, 11], rows=9)
            assert len(allocated) == 5  # it was half done, and the first layer's two were put back
            assert (cache.slots, cache.length, [s.shape for pair in cache._stores.values() for s in pair]) == whole
            assert await write(engine, [8, 9, 10, 11], rows=9) == greedy(MODEL.model, [8, 9, 10, 11], 8)
            written += [token async for token in tokens]
            assert written == greedy(MODEL.model, [5, 6, 7], 20)

    run(go())
    assert emptied(engine)


def test_a_row_whose_logits_are_no_numbers_is_told_and_leaves_no_trace() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.model.get_input_embeddings().weight[299] = float("nan")
    for prompts in ([[5, 299, 7], [12, 13]], [[5, 299, 7, 8, 9, 10, 11], [12, 13]]):
        _check_neighbors_of_a_broken_row(LocalEngine(model, max_rows=2), prompts, 9 if len(prompts[0]) > 3 else 4)


def _check_neighbors_of_a_broken_row(engine: LocalEngine, prompts: list[list[int]], new: int) -> None:
    expected = greedy(engine.model.model, prompts[1], new)

    async def logits(prompt: list[int]) -> None:
        async with engine.open(prompt, room=new) as sequence:
            await sequence.logits()

    async def go() -> None:
        for broken in (write(engine, prompts[0], new), logits(prompts[0])):
            bad, good = await asyncio.gather(broken, write(engine, prompts[1], new), return_exceptions=True)
            assert isinstance(bad, UserError)
            assert "logits that are not numbers" in str(bad)
            assert good == expected
        again = await asyncio.gather(*(write(engine, prompts[1], new) for _ in range(2)))  # in the slots of both
        assert again == [expected, expected]

    run(go())


def test_closing_in_any_order_cancels_who_still_waits() -> None:
    engine = LocalEngine(MODEL)

    async def go() -> None:
        async with engine.open([5, 6, 7], rows=3, room=20) as root:
            forks = [root.fork(), root.fork()]
            writing = asyncio.ensure_future(forks[0].generate(GenerationSettings(max_new_tokens=20)))
            await asyncio.sleep(0)
            root.close()
            root.close()
            forks[0].close()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert (await forks[1].logits()).shape == (320,)

    run(go())
    assert emptied(engine)


def test_an_engine_survives_the_event_loop_that_it_was_used_on() -> None:
    engine = LocalEngine(MODEL)
    expected = greedy(MODEL.model, [5, 6, 7], 8)

    async def abandoned() -> None:
        task = asyncio.ensure_future(write(engine, [5, 6, 7], 200))
        while not engine._waiting:
            await asyncio.sleep(0)
        task.cancel()

    for _ in range(2):
        asyncio.run(abandoned())
        assert asyncio.run(asyncio.wait_for(write(engine, [5, 6, 7]), 30)) == expected


def waiting(pending: int, slot: int) -> SimpleNamespace:
    row = SlotRow(slot, [1] * pending)
    return SimpleNamespace(row=row, call=SimpleNamespace(future=SimpleNamespace(done=lambda: False)))


@given(st.lists(st.integers(1, 300), max_size=30), st.integers(8, 256))
def test_every_waiting_row_is_in_one_forward_and_padding_is_bounded(lengths: list[int], most: int) -> None:
    rows = [waiting(pending, slot) for slot, pending in enumerate(lengths)]
    result = batches(rows, most)  # type: ignore[arg-type]
    assert sorted(member.row.slot for batch, _ in result for member in batch) == list(range(len(rows)))
    for batch, counts in result:
        assert counts == [min(member.row.pending, most) for member in batch]
        assert [member.row.slot for member in batch] == sorted(member.row.slot for member in batch)
        padded = len(batch) * max(counts)
        assert padded <= max(128, 1.3 * sum(counts))
        assert padded <= most or max(counts) == 1 or len(batch) == 1
