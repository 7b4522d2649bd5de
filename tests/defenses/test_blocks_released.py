from __future__ import annotations

from codecs import getincrementaldecoder
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.records import DefenseError, Finished, TextDelta, UserError

PROMPTS = ["How do I bake bread?", "Ünïcode, 12 + 30 = ?", "The lazy dog", "x"]
NEW = 24


def guard(target: LocalEngine, anchor: LocalEngine, harm: Any = lambda text: 0.0, **knobs: Any) -> Guard:
    judge = CallableJudge(lambda messages, response: harm(response), name="test")
    knobs = {"release": "blocks", "block": 4, **knobs}
    return Guard(target, "alignbeam", anchor=anchor, judge=judge, generation={"max_new_tokens": NEW}, **knobs)


@given(st.sampled_from(PROMPTS), st.integers(1, 30), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=12, deadline=None)
def test_blocks_joined_are_the_text_that_comes_whole(
    target: LocalEngine, anchor: LocalEngine, prompt: str, block: int, k: int, n: int
) -> None:
    knobs = {"candidates": k, "mixed_tokens": n}
    whole = guard(target, anchor, release="whole", candidates_written="lazy", **knobs).chat(prompt)
    pieces = list(guard(target, anchor, block=block, **knobs).stream(prompt))
    texts = [one for one in pieces if isinstance(one, TextDelta)]
    assert "".join(one.text for one in texts) == whole.text
    assert tuple(token for one in texts for token in one.token_ids) == whole.token_ids
    finished = pieces[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == whole.finish_reason
    assert finished.usage.completion_tokens == len(whole.token_ids)


def test_nothing_goes_out_before_the_judge_has_passed_the_block_behind_it(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    for prompt in PROMPTS:
        ids = guard(target, anchor, release="whole", candidates_written="lazy").chat(prompt).token_ids
        decode = target.model.vocabulary.decode
        texts = [getincrementaldecoder("utf-8")("replace").decode(decode(ids[:end])) for end in range(len(ids))]
        texts.append(decode(ids).decode("utf-8", "replace"))
        passed: list[str] = []

        def harm(text: str, passed: list[str] = passed) -> float:
            passed.append(text)
            return 0.0

        tokens = early = 0
        for event in guard(target, anchor, harm).stream(prompt):
            if isinstance(event, TextDelta):
                tokens += len(event.token_ids)
                judged = max(end for end, text in enumerate(texts) if text == passed[-1])
                assert judged == len(ids) or tokens <= judged - 4
                early += judged < len(ids)
        assert tokens == len(ids)
        assert bool(early) == (len(ids) > 8)


@pytest.mark.parametrize("size", [0, 20, 40])
def test_a_block_that_is_turned_down_ends_the_text_with_the_refusal(
    target: LocalEngine, anchor: LocalEngine, size: int
) -> None:
    for prompt in PROMPTS:
        whole = guard(target, anchor, release="whole", candidates_written="lazy").chat(prompt)
        found = guard(target, anchor, lambda text, size=size: float(len(text) > size), refusal="No.").chat(prompt)
        if len(whole.text) <= size:
            assert found.text == whole.text
            continue
        assert found.finish_reason == "refusal"
        assert found.text == "No." or found.text.endswith("\n\nNo.")
        kept = found.text.removesuffix("No.").removesuffix("\n\n")
        assert whole.text.startswith(kept) or not kept
        assert len(kept) <= size
        assert any(one.kind == "fallback" for one in found.trace)


def test_the_next_opening_is_taken_where_the_likeliest_is_turned_down(target: LocalEngine, anchor: LocalEngine) -> None:
    for prompt in PROMPTS:
        first = guard(target, anchor).chat(prompt).text
        begun = first[:6]
        other = guard(target, anchor, lambda text, begun=begun: float(text.startswith(begun))).chat(prompt)
        assert not other.text.startswith(begun)
        tried = next(one.data["candidates"] for one in other.trace if one.kind == "candidates")
        assert first.startswith(tried[0]["text"])
        assert len(tried) > 1


def test_a_judge_that_fails_later_is_an_error_and_never_more_text(target: LocalEngine, anchor: LocalEngine) -> None:
    def harm(text: str) -> float:
        if len(text) > 30:
            raise RuntimeError("gone")
        return 0.0

    stream, out = guard(target, anchor, harm).stream(PROMPTS[0]), ""

    def drain() -> None:
        nonlocal out
        for event in stream:
            out += event.text if isinstance(event, TextDelta) else ""

    with pytest.raises(DefenseError, match="gone"):
        drain()
    assert 0 < len(out) <= 30


def test_release_holds_for_all_requests_of_a_guard(target: LocalEngine, anchor: LocalEngine) -> None:
    with pytest.raises(UserError, match="release cannot differ"):
        guard(target, anchor).chat(PROMPTS[0], knobs={"release": "whole"})
