from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import heard, tiny_model

from anchorlm import Guard
from anchorlm.engine import LocalEngine
from anchorlm.models import CausalModel
from anchorlm.records import Response, TextDelta

PROMPT = "Hello there"
PROMPT_TURN = [{"role": "user", "content": PROMPT}]
LENGTH = {"max_new_tokens": 7, "logprobs": 3}
SCORED: dict[str, Any] = {"cost": lambda m, text: -1.0, "reward": lambda m, text: float(len(text))}


@pytest.fixture(scope="module")
def target() -> LocalEngine:
    return LocalEngine(tiny_model("llama"))


@pytest.fixture(scope="module")
def anchor() -> LocalEngine:
    return LocalEngine(tiny_model("gpt2", seed=1))


def by_transformers(model: CausalModel, response: Response) -> torch.Tensor:
    """The target's log-probabilities (T, V) before each token of the response, from one bare forward."""
    prompt = model.encode([{"role": "user", "content": PROMPT}])
    ids = torch.tensor([[*prompt, *response.token_ids]])
    with torch.inference_mode():
        logits = model.model(ids).logits[0, len(prompt) - 1 : -1]
    return heard(model, logits).log_softmax(dim=-1)


@pytest.mark.parametrize(
    ("defense", "options"),
    [
        ("undefended", {}),
        ("undefended", {"generation": LENGTH | {"do_sample": True, "temperature": 2.0, "top_k": 40}}),
        ("best_of_n", {"judge": lambda m, text: 0.0, "n": 3}),
        ("best_of_n", {"judge": lambda m, text: 0.0, "n": 3, "release": "blocks", "block": 3}),
        ("beam_search", {**SCORED, "n": 4, "block": 3}),
        ("inferenceguard", {**SCORED, "block": 3}),
        ("inferenceguard", {**SCORED, "block": 3, "release": "blocks"}),
        ("args", {**SCORED, "k": 3}),
    ],
)
def test_scores_are_the_targets_own_log_probabilities(
    target: LocalEngine, defense: str, options: dict[str, Any]
) -> None:
    response = Guard(target, defense, **{"generation": LENGTH, **options}).chat(PROMPT_TURN)
    assert response.scores is not None
    assert [one.token for one in response.scores] == list(response.token_ids) != []
    want = by_transformers(target.model, response)
    for one, row in zip(response.scores, want, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-3)
        values, ids = row.topk(3)
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-3)
        assert one.top[0][0] == int(ids[0])


def test_mixed_tokens_are_scored_by_the_mixture_and_the_others_by_the_target(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    guard = Guard(target, "alignbeam", anchor=anchor, judge=lambda m, text: 0.0, mixed_tokens=3, candidates=2,
                  trace_top=5, generation=LENGTH)  # fmt: skip
    response = guard.chat(PROMPT_TURN)
    assert response.scores is not None
    chosen = next(one.data["index"] for one in response.trace if one.kind == "chosen")
    steps = next(one.data for one in response.trace if one.kind == "mix" and one.data["candidate"] == chosen)["steps"]
    for one, step in zip(response.scores[:3], steps, strict=True):
        shown = [round(float(torch.tensor(value).exp()), 4) for _, value in one.top]
        assert shown == [value for _, value in step["mixture"][:3]]
    want = by_transformers(target.model, response)
    assert [one.logprob for one in response.scores[3:]] == pytest.approx(
        [float(row[one.token]) for row, one in zip(want[3:], response.scores[3:], strict=True)], abs=1e-3
    )
    assert [one.logprob for one in response.scores[:3]] != pytest.approx(
        [float(row[one.token]) for row, one in zip(want[:3], response.scores[:3], strict=True)], abs=1e-3
    )


def test_streamed_scores_are_those_of_the_whole_and_nothing_else_changes(target: LocalEngine) -> None:
    guard = Guard(target, generation={"max_new_tokens": 7})
    plain, scored = guard.chat(PROMPT_TURN), guard.chat(PROMPT_TURN, logprobs=0)
    assert plain.scores is None
    assert plain.token_ids == scored.token_ids
    pieces = [one for one in guard.stream(PROMPT_TURN, logprobs=0) if isinstance(one, TextDelta)]
    assert tuple(score for piece in pieces for score in piece.scores) == scored.scores
    assert all(one.top == () for one in scored.scores or ())


def test_a_configured_refusal_has_no_tokens_to_score(target: LocalEngine) -> None:
    response = Guard(target, "best_of_n", judge=lambda m, text: 1.0, n=2, generation=LENGTH).chat(PROMPT_TURN)
    assert (response.finish_reason, response.scores) == ("refusal", ())


def test_requests_that_share_a_forward_get_as_many_alternatives_as_each_asked_for(target: LocalEngine) -> None:
    guard = Guard(target, generation={"max_new_tokens": 4})
    requests = [guard.request(PROMPT_TURN, logprobs=count) for count in (None, 0, 2, 5)]
    found = dict(guard.map(requests))
    sizes = [
        None if one.scores is None else {len(score.top) for score in one.scores}  # type: ignore[union-attr]
        for one in (found[index] for index in range(4))
    ]
    assert sizes == [None, {0}, {2}, {5}]
