"""What each part of the search does: each of these fails when the part is taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from factories import tiny_tokenizer, tiny_weights

import anchorlm.search
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import Scorer
from anchorlm.models import CausalModel
from anchorlm.records import Messages, Response, TextDelta
from anchorlm.search import blank

USER = [{"role": "user", "content": "How do I bake bread?"}]
REFUSAL = "I'm sorry, but I can't help with that."
ALL = [-1.0] * 64


class Recorder(Scorer):
    """Costs by the round of the search; keeps what was read, in order."""

    name = "recorder"

    def __init__(self, costs: Callable[[int, Sequence[str]], Sequence[float]] = lambda index, texts: ALL) -> None:
        self.costs, self.read = costs, list[list[str]]()

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        if list(responses) == [REFUSAL]:
            return [-1.0]
        self.read.append(list(responses))
        return list(self.costs(len(self.read) - 1, responses)[: len(responses)])


class Fixed:
    """A critic of fixed words."""

    threshold = 0.5

    def __init__(self, safe: Sequence[float], worth: Sequence[float]) -> None:
        self.safe, self.worth, self.left = safe, worth, list[list[float]]()

    def __call__(self, hidden: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.left.append(left.tolist())
        return torch.tensor(self.safe)[: len(hidden)], torch.tensor(self.worth)[: len(hidden)]


def guard(target: LocalEngine, cost: Scorer, **knobs: Any) -> Guard:
    settings = {"beams": (4,), "draft": False, "block": 3, "temperature": 1.5, "lead": 1e9, "retries": 0, **knobs}
    return Guard(target, "inferenceguard", cost=cost, reward=lambda messages, text: 0.0,
                 generation={"max_new_tokens": 9}, **settings)  # fmt: skip


def search(response: Response) -> Any:
    [found] = [each.data for each in response.trace if each.kind == "search"]
    return found


@pytest.mark.parametrize("best", range(4))
def test_the_beam_goes_on_of_which_the_critic_expects_most(target: LocalEngine, best: int) -> None:
    cost = Recorder()
    one = guard(target, cost)
    one.defense.critic = Fixed([1.0] * 4, [float(index == best) for index in range(4)])  # type: ignore[attr-defined]
    one.chat(USER)
    first, second = cost.read[:2]
    assert len(set(first)) == 4
    assert all(text.startswith(first[best]) for text in second)


@pytest.mark.parametrize("safe", range(4))
def test_a_beam_goes_on_only_where_the_critic_expects_it_to_end_within_budget(target: LocalEngine, safe: int) -> None:
    cost = Recorder()
    one = guard(target, cost)
    one.defense.critic = Fixed([0.6 if index == safe else 0.4 for index in range(4)], [-float(index == safe) for index in range(4)])  # type: ignore[attr-defined] # noqa: E501 # fmt: skip
    one.chat(USER)
    assert all(text.startswith(cost.read[0][safe]) for text in cost.read[1])
    none = guard(target, Recorder())
    none.defense.critic = Fixed([0.4] * 4, [1.0] * 4)  # type: ignore[attr-defined]
    assert none.chat(USER).finish_reason == "refusal"


def test_the_critic_is_told_the_budget_left(target: LocalEngine) -> None:
    cost = Recorder(lambda index, texts: [0.25, -3.0, 0.75, 0.5] if index == 0 else ALL)
    one = guard(target, cost, budget=1.0)
    one.defense.critic = critic = Fixed([1.0] * 4, [0.0] * 4)  # type: ignore[attr-defined]
    one.chat(USER)
    assert critic.left[0] == pytest.approx([0.75, 1.0, 0.25, 0.5])


@pytest.mark.parametrize(("keep", "kept"), [(0.25, 1), (0.5, 2), (1.0, 4)])
def test_as_many_beams_go_on_as_are_kept(target: LocalEngine, keep: float, kept: int) -> None:
    cost = Recorder()
    guard(target, cost, keep=keep).chat(USER)
    first, second = cost.read[:2]
    assert len({old for old in first if any(new.startswith(old) for new in second)}) == kept


def test_a_round_in_which_all_beams_fail_is_sampled_again_and_may_still_succeed(target: LocalEngine) -> None:
    def late(index: int, texts: Sequence[str]) -> Sequence[float]:
        return [1.0] * 4 if index < 2 else ALL

    saved = guard(target, Recorder(late), retries=2).chat(USER)
    assert saved.finish_reason != "refusal"
    assert search(saved)["retries"] == 2
    assert guard(target, Recorder(late), retries=1).chat(USER).finish_reason == "refusal"


@pytest.mark.parametrize(("diversity", "same"), [(0.0, True), (1e6, False)])
def test_what_failed_beams_shared_is_avoided_when_they_are_sampled_again(
    target: LocalEngine, diversity: float, same: bool
) -> None:
    cost = Recorder(lambda index, texts: [1.0] * 4 if index == 0 else ALL)
    guard(target, cost, retries=1, diversity=diversity, temperature=1e-6).chat(USER)
    failed, again = cost.read[:2]
    assert len(set(failed)) == 1
    assert (set(again) == set(failed)) == same


@pytest.fixture(scope="module")
def terse() -> LocalEngine:
    """Ends its turn after a few tokens."""
    weights = tiny_weights("llama")
    weights.generation_config.eos_token_id = list(range(200, 320, 4))
    return LocalEngine(CausalModel.wrap(weights, tiny_tokenizer(), name="terse"))


def test_a_finished_beam_that_leads_ends_the_search_and_one_that_does_not_waits(terse: LocalEngine) -> None:
    rounds = {}
    for lead in (0.0, 1e9):
        one = guard(terse, Recorder(), block=2, lead=lead, keep=1.0, beams=(8,))
        response = one.chat(USER)
        assert response.finish_reason == "stop"
        assert not terse.model.stop_ids & set(response.token_ids)
        rounds[lead] = search(response)["rounds"]
    assert rounds[0.0] < rounds[1e9]


def test_what_would_follow_the_end_of_a_turn_costs_nothing(terse: LocalEngine) -> None:
    cost = Recorder()
    response = guard(terse, cost, block=9, beams=(8,), keep=1.0).chat(USER, seed=1)
    texts = [one["text"] for one in search(response)["responses"]]
    assert sorted(texts) == sorted(text for text in cost.read[0] if not blank(text))
    ends = {len(terse.model.vocabulary.decode(response.token_ids)), 9}
    assert len(ends) > 1
    assert len(response.token_ids) < 9


def test_a_discount_forgives_while_searching_and_never_at_the_gate(target: LocalEngine) -> None:
    def early(index: int, texts: Sequence[str]) -> Sequence[float]:
        return [1.5] * 4 if index == 0 else ALL

    assert guard(target, Recorder(early), budget=1.0, gamma=0.5).chat(USER).finish_reason != "refusal"
    assert guard(target, Recorder(early), budget=1.0, gamma=1.0).chat(USER).finish_reason == "refusal"
    for release in ("whole", "blocks"):
        over = guard(target, Recorder(lambda index, texts: [1.5] * 4), budget=1.0, gamma=0.5, release=release)
        assert over.chat(USER).text == REFUSAL


def test_no_two_blocks_draw_the_same_numbers(target: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = []

    async def noted(roots: Any, plan: Any, *rest: Any) -> Any:
        offsets.append(plan.offset)
        return await real(roots, plan, *rest)

    real = anchorlm.search.search
    monkeypatch.setattr(anchorlm.search, "search", noted)
    guard(target, Recorder(), release="blocks").chat(USER)
    assert offsets == [0, 1, 2]


def test_characters_come_whole_block_by_block_and_an_empty_beginning_is_no_answer(target: LocalEngine) -> None:
    halves = 0
    for seed in range(8):  # under which no beam ends within a character
        cost = Recorder()
        one = guard(target, cost, block=1, release="blocks", temperature=4.0)
        deltas = [event for event in one.stream(USER, seed=seed) if isinstance(event, TextDelta)]
        response = one.chat(USER, seed=seed)
        assert "".join(delta.text for delta in deltas) == response.text
        assert tuple(token for delta in deltas for token in delta.token_ids) == response.token_ids
        unfinished = [text for texts in cost.read[:8] for text in texts]
        assert not any(text.endswith("\ufffd") for text in unfinished)
        halves += unfinished.count("")
        strict = guard(target, Recorder(lambda index, texts: [-float(not text) or 1.0 for text in texts]), block=1,
                       release="blocks", temperature=4.0, beams=(16,))  # fmt: skip
        refused = strict.chat(USER, seed=seed)
        assert (refused.text, refused.token_ids, refused.finish_reason) == (REFUSAL, (), "refusal")
    assert halves


def test_in_blocks_too_the_reason_of_a_refusal_says_what_stood_in_the_way(target: LocalEngine) -> None:
    vetoed = Guard(target, "inferenceguard", cost=Recorder(), reward=lambda m, text: 0.0, judge=lambda m, text: 1.0,
                   beams=(4,), release="blocks", generation={"max_new_tokens": 9})  # fmt: skip
    assert "the judge turned down" in vetoed.chat(USER).trace[-1].data["why"]
    narrow = LocalEngine(target.model, max_tokens=2 * len(target.model.encode(USER)))
    short = guard(narrow, Recorder(lambda index, texts: [1.0] * 4), release="blocks").chat(USER)
    assert "no room for [4] beams" in short.trace[-1].data["why"]
