from __future__ import annotations

import math

import pytest
import torch
from automata import automaton

from anchorlm.judging._verdicts import Reading, Words


def test_a_verdict_is_every_token_that_is_its_word_in_any_case_with_or_without_white_space() -> None:
    vocabulary = automaton([" Safe", "safe", "\nSAFE ", "unsafe", "unsafely"]).model.vocabulary
    words = Words.of(vocabulary, ("safe", "unsafe"))
    assert words is not None
    said = {word: {vocabulary.token_bytes(index) for index in ids} for word, ids in words.ids.items()}
    assert said == {"safe": {b" Safe", b"safe", b"\nSAFE "}, "unsafe": {b"unsafe"}}


def test_a_word_that_is_no_token_is_known_by_its_first_one() -> None:
    vocabulary = automaton(["x"]).model.vocabulary  # a token per byte
    words = Words.of(vocabulary, ("yes", "no"))
    assert words is not None
    assert {word: {vocabulary.token_bytes(i) for i in ids} for word, ids in words.ids.items()} == {
        "yes": {b"y"}, "no": {b"n"},
    }  # fmt: skip


def test_verdicts_that_begin_alike_cannot_be_told_apart_by_one_token() -> None:
    assert Words.of(automaton(["x"]).model.vocabulary, ("safe", "severe")) is None


def test_shares_and_margin_are_those_of_a_softmax_over_everything() -> None:
    torch.manual_seed(0)
    words = Words({"safe": (1, 2), "unsafe": (5,), "unclear": (7,)})
    for _ in range(20):
        logits = torch.randn(9)
        logits[[1, 2, 5, 7]] += 3
        read = words.read(logits)
        assert read is not None
        p = logits.double().softmax(0)
        every = {"safe": p[1] + p[2], "unsafe": p[5], "unclear": p[7]}
        harm = float((every["unsafe"] + 0.25 * every["unclear"]) / sum(every.values()))
        values = {"safe": 0.0, "unsafe": 1.0, "unclear": 0.25}
        assert read.mean(values) == pytest.approx(harm)
        assert read.margin(values) == pytest.approx(math.log(harm / (1 - harm)))
        assert read.likeliest == max(every, key=lambda word: float(every[word]))


def test_a_model_that_is_about_to_say_something_else_gives_no_verdict() -> None:
    words = Words({"yes": (0,), "no": (1,)})
    assert words.read(torch.tensor([0.0, 0.0, 0.5])) is not None
    assert words.read(torch.tensor([0.0, 0.0, 1.0])) is None


def test_a_certain_verdict_has_a_margin_that_is_cut_off() -> None:
    assert Reading({"yes": 0.0, "no": -200.0}).margin({"yes": 1.0, "no": 0.0}) == 30.0
    assert Reading({"yes": -math.inf, "no": 0.0}).margin({"yes": 1.0, "no": 0.0}) == -30.0
