from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.defenses.inferenceguard import fit_inferenceguard, save_critic
from anchorlm.defenses.inferenceguard._rollouts import Rollout
from anchorlm.defenses.inferenceguard._train import choose_threshold, reliability, train_critic
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import Scorer
from anchorlm.judging._auroc import auroc
from anchorlm.records import Artifact, DefenseError, Messages, UserError

few = settings(max_examples=40, deadline=None)

REFUSAL = "I'm sorry, but I can't help with that."
THINGS = ("door", "car", "lamp", "boat", "fence", "gate", "roof", "shed", "bike", "horse")
HARMFUL = [f"How do I break the {thing}?" for thing in THINGS]
HARMLESS = [f"How do I paint the {thing}?" for thing in THINGS]
FIT: dict[str, Any] = {"rollouts": 2, "block": 3, "max_new_tokens": 8, "epochs": 5, "hidden": 16}


def chance(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**31 - 1


ASKED: list[str] = []
"""Every text of which the cost was asked."""


def cost(messages: Messages, text: str) -> float:
    """Every second answer to a harmful prompt is over budget, and few others are."""
    ASKED.append(text)
    if text == REFUSAL:
        return -1.0
    return chance(text) if "break" in messages[-1]["content"] else chance(text) - 0.9


def reward(messages: Messages, text: str) -> float:
    return float(len(text))


class Hasty(Scorer):
    """Finds beginnings unsafe, and whole texts safe."""

    name = "hasty"
    settings: ClassVar[dict[str, Any]] = {}

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        return [-1.0] if responses == [REFUSAL] else [*[1.0] * (len(responses) - 1), -0.5]


def fit(target: LocalEngine, scores: Any = cost, **options: Any) -> Artifact:
    return fit_inferenceguard(target, scores, reward, HARMFUL, HARMLESS, **{**FIT, **options})


@pytest.fixture(scope="module")
def critic(target: LocalEngine) -> Artifact:
    return fit(target)


@pytest.mark.slow
def test_a_critic_learns_what_the_last_state_tells() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 9, generator=generator)
    inputs[:, -1] = inputs[:, -1].abs()
    within = ((inputs[:, 0] + inputs[:, -1]) > 0.5).float()
    worth = 3 * inputs[:, 1] + 10
    learned = train_critic(inputs[:500], within[:500], worth[:500], hidden=32, epochs=80, step=lambda *_: None)
    safety, guessed = learned(inputs[500:, :-1], inputs[500:, -1])
    told = auroc(safety, within[500:] > 0.5)
    assert told is not None
    assert told > 0.93
    assert float(((guessed - worth[500:]) ** 2).mean()) < 0.3 * float(worth.var())
    again = train_critic(inputs[:500], within[:500], worth[:500], hidden=32, epochs=80, step=lambda *_: None)
    assert all(torch.equal(one, again.tensors()[name]) for name, one in learned.tensors().items())


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]) -> None:
    pairs = [(a, b) for a, yes in rows if yes for b, no in rows if not no]
    want = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else None
    found = auroc([value for value, _ in rows], [yes for _, yes in rows])
    assert found == (None if want is None else pytest.approx(want))


# Between the values of the grid, where rounding decides nothing.
@few
@given(st.lists(st.tuples(st.integers(0, 199).map(lambda k: (k + 0.5) / 200), st.booleans()), min_size=2, max_size=60))
def test_no_other_threshold_of_the_grid_is_better_balanced(rows: list[tuple[float, bool]]) -> None:
    safety = torch.tensor([value for value, _ in rows])
    within = torch.tensor([float(yes) for _, yes in rows])

    def balanced(at: float) -> float:
        on = (safety >= at).float()
        return float((on[within > 0.5].mean() + (1 - on[within <= 0.5]).mean()) / 2)

    chosen = choose_threshold(safety, within)
    if within.min() == within.max():
        assert chosen == 0.5
    else:
        assert balanced(chosen) >= max(balanced(at / 100) for at in range(2, 99)) - 1e-5


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_every_state_is_in_one_row_of_the_reliability(rows: list[tuple[float, bool]]) -> None:
    said, within = torch.tensor([v for v, _ in rows]), torch.tensor([float(yes) for _, yes in rows])
    table = reliability(said, within, range(len(rows)))
    assert sum(row["n"] for row in table) == len(rows)
    assert sum(round(row["ended"] * row["n"]) for row in table) == sum(yes for _, yes in rows)
    assert all(row["low"] <= row["ended"] + 1e-9 and row["ended"] <= row["high"] + 1e-9 for row in table)


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.integers(2, 4))
def test_more_states_of_the_same_prompts_that_end_alike_make_no_interval_narrower(
    rows: list[tuple[float, bool]], times: int
) -> None:
    said, within = torch.tensor([v for v, _ in rows]), torch.tensor([float(yes) for _, yes in rows])
    once = reliability(said, within, range(len(rows)))
    often = reliability(said.repeat(times), within.repeat(times), [*range(len(rows))] * times)
    for one, other in zip(once, often, strict=True):
        assert (other["n"], other["prompts"]) == (times * one["n"], one["prompts"])
        assert (other["low"], other["high"]) == pytest.approx((one["low"], one["high"]))


def test_a_rollout_that_was_over_budget_once_ends_over_budget() -> None:
    rollout = Rollout(0, 0, list(range(8)), [3, 6], [0.5, -1.0, -2.0], 1.0)
    assert [state.within for state in rollout.states(0.0)] == [False, False, False]
    assert [state.within for state in rollout.states(0.5)] == [True, True, True]


def test_a_fitted_critic_says_what_it_was_fitted_on_and_serves_no_other_model(
    target: LocalEngine, anchor: LocalEngine, critic: Artifact, tmp_path: Path
) -> None:
    figures = critic.figures
    assert figures["states after the first block"] > 0
    assert 0 < figures["ended within budget"] < 1
    assert figures["cost model"]["auroc of answers against refusals"] > 0.9
    folder = save_critic(critic, tmp_path / "critic")
    assert critic.id in (folder / "README.md").read_text()
    assert (folder / "reliability.svg").read_text().startswith("<svg")
    options: dict[str, Any] = {"cost": cost, "reward": reward, "generation": {"max_new_tokens": 8}, "block": 3}
    guard = Guard(target, "inferenceguard", critic=folder, beams=(4,), **options)
    for prompt in HARMFUL:
        response = guard.chat([{"role": "user", "content": prompt}])
        assert response.text == REFUSAL or cost([{"role": "user", "content": prompt}], response.text) <= 0
    with pytest.raises(UserError, match="was fitted on the target"):
        Guard(anchor, "inferenceguard", critic=folder, **options)
    with pytest.raises(UserError, match="another cost or reward model"):
        Guard(target, "inferenceguard", critic=folder, **{**options, "cost": reward, "budget": 100.0})
    for name, value in (("budget", 0.5), ("block", 4), ("gamma", 0.5)):
        own = {"budget": "0", "block": "3", "gamma": "1"}[name]
        with pytest.raises(UserError, match=f"was fitted for {name} = {own}, not {value:g}"):
            Guard(target, "inferenceguard", critic=folder, **{**options, name: value})
        with pytest.raises(UserError, match=f"was fitted for {name} = {own}: leave the {name}"):
            guard.chat([{"role": "user", "content": HARMFUL[0]}], knobs={name: value})


def test_a_killed_fit_goes_on_from_its_journal_and_comes_to_the_same(
    target: LocalEngine, critic: Artifact, tmp_path: Path
) -> None:
    journal = tmp_path / "rollouts.jsonl"
    whole = fit(target, journal=journal)
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * len(HARMFUL + HARMLESS)
    journal.write_text("".join(lines[:14]) + lines[14][: len(lines[14]) // 2])
    ASKED.clear()
    resumed = fit(target, journal=journal)
    assert resumed.id == whole.id == critic.id
    assert len([text for text in ASKED if text != REFUSAL]) > 0
    kept = {text for line in lines[1:14] for text in [target.model.vocabulary.decode(json.loads(line)["tokens"])]}
    assert not kept & {text.encode() for text in ASKED}
    with pytest.raises(UserError, match="rollouts of another fit"):
        fit(target, journal=journal, seed=1)


def test_a_cost_model_of_the_wrong_sign_or_head_is_found_out(target: LocalEngine) -> None:
    with pytest.raises(UserError, match="scale = -1"):
        fit(target, lambda messages, text: -cost(messages, text) - 0.9 * (text != REFUSAL))
    with pytest.raises(UserError, match="which label or head"):
        fit(target, lambda messages, text: -0.5)


def test_where_the_target_refuses_itself_a_cost_model_that_tells_nothing_is_still_found_out(
    target: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorlm.defenses.inferenceguard._fit.opens_refusing", lambda text: True)
    with pytest.raises(UserError, match="to all texts: check which label or head"):
        fit(target, lambda messages, text: -0.5)
    with pytest.raises(UserError, match="scale = -1 if it gives more to safer texts"):
        fit(target, lambda messages, text: -cost(messages, text) - 0.9 * (text != REFUSAL))
    assert fit(target).figures["cost model"]["auroc of answers against refusals"] is None


def test_a_critic_is_measured_on_states_of_which_a_search_would_ask_it(target: LocalEngine) -> None:
    # What ends over budget here is so after its first block: the cost model tells, and the critic is never asked.
    def by_prompt(messages: Messages, text: str) -> float:
        asked = messages[-1]["content"]
        return -1.0 if text == REFUSAL else 1.0 if "break" in asked and chance(asked) > 0 else -0.9

    told = fit(target, by_prompt, epochs=1).figures
    assert told["over budget after a block"] > 0
    assert told["ended within budget"] == 1
    assert told["auroc after the first block"] is None
    # Here a text may go over budget at any of its blocks.
    late = fit(target, epochs=1).figures
    assert 0 < late["ended within budget"] < 1


def test_a_discount_is_fitted_for(target: LocalEngine) -> None:
    made = fit(target, gamma=0.9)
    assert made.settings["gamma"] == 0.9
    assert made.id != fit(target).id


def test_a_cost_model_without_a_number_for_the_refusal_is_an_error(target: LocalEngine) -> None:
    with pytest.raises(DefenseError, match="one finite number"):
        fit(target, lambda messages, text: float("nan") if text == REFUSAL else cost(messages, text))


def test_a_budget_that_nothing_meets_and_sizes_that_do_not_fit_are_named(target: LocalEngine) -> None:
    with pytest.raises(UserError, match="A budget of 0 lets through no answer to a harmless prompt"):
        fit(target, lambda messages, text: -1.0 if text == REFUSAL else 1.0)
    with pytest.raises(UserError, match="not even most refusals"):
        fit(target, lambda messages, text: 0.5 if text == REFUSAL else 0.6 if "break" in str(messages) else -1.0)
    with pytest.raises(UserError, match="lower block, or raise max_new_tokens"):
        fit(target, block=8)
    for wrong in ({"budget": float("inf")}, {"budget": float("nan")}, {"holdout": 1.0}, {"gamma": 0.0}, {"epochs": 0}):
        (name,) = wrong
        with pytest.raises(UserError, match=rf"^{name} = .* does not fit: give one .*\.$"):
            fit(target, **wrong)
    with pytest.raises(UserError, match="one side of the holdout of 0.999"):
        fit(target, holdout=0.999)
    with pytest.raises(UserError, match="within a budget of 0 after its first block: raise the budget"):
        fit(target, Hasty())
    with pytest.raises(UserError, match="distinct harmful prompts"):
        fit_inferenceguard(target, cost, reward, HARMFUL[:3], HARMLESS)
