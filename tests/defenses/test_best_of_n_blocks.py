from __future__ import annotations

from codecs import getincrementaldecoder
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.records import DefenseError, Finished, TextDelta, UserError

PROMPTS = ["How do I bake bread?", "Ünïcode, 12 + 30 = ?", "The lazy dog", "x"]
NEW = 24
GREEDY = 1e-6
"""A temperature so low that every sample is the likeliest text, however it is drawn."""


def guard(target: LocalEngine, harm: Any = lambda text: 0.0, **knobs: Any) -> Guard:
    judge = CallableJudge(lambda messages, response: harm(response), name="test")
    knobs = {"release": "blocks", "block": 4, "n": 3, **knobs}
    return Guard(target, "best_of_n", judge=judge, generation={"max_new_tokens": NEW}, **knobs)


def begun(guarded: Guard, prompt: str, seed: int = 0) -> list[str]:
    """The texts among which it chose."""
    trace = guarded.chat(prompt, seed=seed).trace
    return [one["text"] for decision in trace for one in decision.data.get("candidates", ())]


@given(st.sampled_from(PROMPTS), st.integers(1, 30), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_blocks_joined_are_the_answer_that_the_same_guard_gives_at_once(
    target: LocalEngine, prompt: str, block: int, n: int, seed: int
) -> None:
    guarded = guard(target, block=block, n=n)
    whole, pieces = guarded.chat(prompt, seed=seed), list(guarded.stream(prompt, seed=seed))
    texts = [one for one in pieces if isinstance(one, TextDelta)]
    assert "".join(one.text for one in texts) == whole.text
    assert tuple(token for one in texts for token in one.token_ids) == whole.token_ids
    finished = pieces[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == whole.finish_reason
    assert finished.usage.completion_tokens == len(whole.token_ids)


@pytest.mark.parametrize("block", [1, 5, 30])
def test_where_nothing_is_left_to_chance_the_text_is_the_one_that_comes_whole(target: LocalEngine, block: int) -> None:
    for prompt in PROMPTS:
        found = guard(target, temperature=GREEDY, block=block).chat(prompt)
        whole = guard(target, temperature=GREEDY, release="whole").chat(prompt)
        assert (found.text, found.token_ids, found.finish_reason) == (whole.text, whole.token_ids, whole.finish_reason)


def test_samples_begin_as_those_that_are_written_whole(target: LocalEngine) -> None:
    for prompt in PROMPTS:
        first = begun(guard(target, lambda text: 0.375, comfort=0.1), prompt, seed=3)
        whole = begun(guard(target, lambda text: 0.375, comfort=0.1, release="whole"), prompt, seed=3)
        assert len(first) == 3
        assert all(one.startswith(beginning) for beginning, one in zip(first, whole, strict=True))
        assert len(set(whole)) > 1


def test_nothing_goes_out_before_the_judge_has_passed_the_block_behind_it(target: LocalEngine) -> None:
    decode = target.model.vocabulary.decode
    for seed, prompt in enumerate(PROMPTS):
        ids = guard(target).chat(prompt, seed=seed).token_ids
        texts = [getincrementaldecoder("utf-8")("replace").decode(decode(ids[:end])) for end in range(len(ids))]
        texts.append(decode(ids).decode("utf-8", "replace"))
        passed: list[str] = []

        def harm(text: str, passed: list[str] = passed) -> float:
            passed.append(text)
            return 0.0

        tokens = early = 0
        for event in guard(target, harm).stream(prompt, seed=seed):
            if isinstance(event, TextDelta):
                tokens += len(event.token_ids)
                judged = max(end for end, text in enumerate(texts) if text == passed[-1])
                assert judged == len(ids) or tokens <= judged - 4
                early += judged < len(ids)
        assert tokens == len(ids)
        assert bool(early) == (len(ids) > 8)


@pytest.mark.parametrize("size", [0, 20, 40])
def test_a_block_that_is_turned_down_ends_the_text_with_the_refusal(target: LocalEngine, size: int) -> None:
    for seed, prompt in enumerate(PROMPTS):
        passing = guard(target, n=1, refusal="No.").chat(prompt, seed=seed)
        judged = guard(target, lambda text, size=size: float(len(text) > size), n=1, refusal="No.")
        found = judged.chat(prompt, seed=seed)
        if len(passing.text) <= size:
            assert found.text == passing.text
            continue
        assert found.finish_reason == "refusal"
        assert found.text == "No." or found.text.endswith("\n\nNo.")
        kept = found.text.removesuffix("No.").removesuffix("\n\n")
        assert passing.text.startswith(kept)
        assert len(kept) <= size
        assert any(one.kind == "fallback" for one in found.trace)


def test_the_other_samples_are_begun_only_where_the_judge_is_not_comfortable_with_the_first(
    target: LocalEngine,
) -> None:
    for prompt in PROMPTS:
        (first,) = begun(guard(target), prompt)
        several = guard(target, lambda text, first=first: float(first.startswith(text) or text.startswith(first)))
        tried = begun(several, prompt)
        assert tried[0] == first
        assert len(tried) == 3
        found = several.chat(prompt)
        assert found.finish_reason == "refusal" or not found.text.startswith(first)


@given(st.sampled_from(PROMPTS), st.integers(1, 8), st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_after_a_judge_has_failed_no_text_goes_out(target: LocalEngine, prompt: str, fails: int, seed: int) -> None:
    before: list[str] = []
    after: list[str] = []
    read, failed, raised = 0, False, False

    def harm(text: str) -> float:
        nonlocal read, failed
        read += 1
        failed = failed or read >= fails
        if failed:
            raise RuntimeError("gone")
        return 0.0

    try:
        for event in guard(target, harm, refusal="No.").stream(prompt, seed=seed):
            if isinstance(event, TextDelta):
                (after if failed else before).append(event.text)
    except DefenseError:
        raised = True
    assert raised == (failed and bool(before))
    assert "".join(after) == ("No." if failed and not before else "")
    assert failed == (read >= fails)


def test_release_holds_for_all_requests_of_a_guard(target: LocalEngine) -> None:
    with pytest.raises(UserError, match="release cannot differ"):
        guard(target).chat(PROMPTS[0], knobs={"release": "whole"})


def test_a_server_that_goes_on_with_no_answer_gives_whole_ones_only() -> None:
    served = Endpoint(readable(tiny_model("llama")), completions=False, continues="no")
    try:
        source: Any = {"endpoint": served.url}
        assert guard(source, release="whole").chat(PROMPTS[0]).text
        with pytest.raises(UserError, match="set release to whole"):
            guard(source)
    finally:
        served.stop()
