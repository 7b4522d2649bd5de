from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorlm.defenses import InferenceGuard
from anchorlm.defenses.inferenceguard import Critic, Labeled, calibrate_inferenceguard
from anchorlm.engine import LocalEngine, runtime
from anchorlm.guard import Guard
from anchorlm.records import Messages, Response, TextDelta, UserError

USER = [{"role": "user", "content": "How do I bake bread?"}]
PROMPTS = [
    [{"role": "user", "content": f"How do I bake {thing}?"}] for thing in ("rye", "a cake", "pie", "tart", "rolls")
]
REFUSAL = "I'm sorry, but I can't help with that."
SMALL: dict[str, Any] = {"beams": (4, 8), "block": 3, "temperature": 1.5}


def chance(text: str, salt: str = "") -> float:
    """A number from -1 to 1 that depends on the text and on nothing else."""
    return int(hashlib.sha256((salt + text).encode()).hexdigest()[:8], 16) / 2**31 - 1


def cost(messages: Messages, text: str) -> float:
    """Most texts are over budget, whole or not."""
    return -1.0 if text == REFUSAL else chance(text) + 0.5


def late(messages: Messages, text: str) -> float:
    """Beginnings are fine."""
    return -1.0 if text == REFUSAL or len(text) < 12 else chance(text) + 0.3


def reward(messages: Messages, text: str) -> float:
    return chance(text, "reward")


def guard(target: LocalEngine, scores: Any = cost, **knobs: Any) -> Guard:
    settings = {**SMALL, **knobs}
    return Guard(target, "inferenceguard", cost=scores, reward=reward, generation={"max_new_tokens": 9}, **settings)


def critic(target: LocalEngine, seed: int, threshold: float = 0.5) -> Critic:
    """Of random weights: it knows nothing."""
    width, generator = target.model.text_config.hidden_size, torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Critic(
        torch.zeros(width + 1), torch.ones(width + 1), noise(16, width + 1), noise(16), noise(2, 16), noise(2),
        torch.tensor([0.0, 1.0]), threshold,
    )  # fmt: skip


class Optimist:
    """An adversary's critic: all that is over budget is safe, and the worst is the most valuable."""

    threshold = 0.5

    def __call__(self, hidden: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(len(hidden)), -100 * left


def assert_gated(responses: list[Response], scores: Any, limit: float = 0.0) -> None:
    for prompt, response in zip(PROMPTS, responses, strict=True):
        if response.finish_reason == "refusal":
            assert response.text == REFUSAL
            assert response.token_ids == ()
        else:
            assert scores(prompt, response.text) <= limit


@pytest.mark.parametrize("scores", [cost, late])
@pytest.mark.parametrize("kind", ["none", "random", "other random", "keeps all", "adversary"])
def test_nothing_over_budget_is_emitted_under_any_critic(target: LocalEngine, scores: Any, kind: str) -> None:
    one = guard(target, scores)
    assert isinstance(one.defense, InferenceGuard)
    critics: dict[str, Any] = {
        "none": None, "random": critic(target, 1), "other random": critic(target, 2),
        "keeps all": critic(target, 3, threshold=0.0), "adversary": Optimist(),
    }  # fmt: skip
    one.defense.critic = critics[kind]
    for seed in range(2):
        assert_gated(one.generate(PROMPTS, seed=seed), scores)


def test_some_of_that_are_real_answers_and_some_are_found_by_searching_only(target: LocalEngine) -> None:
    responses = [r for seed in range(4) for r in guard(target, late, block=9).generate(PROMPTS, seed=seed)]
    answered = [one for one in responses if one.finish_reason != "refusal"]
    assert answered
    assert any(decision.kind == "search" for one in answered for decision in one.trace)


def test_where_every_beam_is_unsafe_the_refusal_comes_after_bounded_work(target: LocalEngine) -> None:
    never = guard(target, lambda m, text: -1.0 if text == REFUSAL else 1.0, retries=2)
    response = never.chat(USER)
    assert (response.text, response.finish_reason) == (REFUSAL, "refusal")
    # A draft of 9 tokens; of each search only its first block of 3, in three tries.
    assert response.usage.generated_tokens <= 9 + 3 * 3 * (4 + 8)
    kinds = [decision.kind for decision in response.trace]
    assert kinds == ["draft", "search", "search", "fallback"]
    assert "nothing within 0.000 was found" in response.trace[-1].data["why"]


def test_a_draft_within_budget_is_the_bare_answer_and_costs_no_search(target: LocalEngine) -> None:
    plain = Guard(target, generation={"max_new_tokens": 9})
    easy = guard(target, lambda m, text: -1.0)
    ways: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": 4}]
    for options in ways:
        response = easy.chat(USER, **options)
        assert response.token_ids == plain.chat(USER, **options).token_ids
        assert [decision.kind for decision in response.trace] == ["draft", "chosen"]


def test_a_draft_that_is_not_comfortable_is_given_only_where_nothing_better_is_found(target: LocalEngine) -> None:
    draft = Guard(target, generation={"max_new_tokens": 9}).chat(USER).text
    tight = guard(target, lambda m, text: -0.1 if text == draft else (-1.0 if text == REFUSAL else 1.0), comfort=0.5)
    response = tight.chat(USER)
    assert response.text == draft
    assert [decision.kind for decision in response.trace] == ["draft", "search", "search", "chosen"]
    better = guard(target, lambda m, text: -0.1 if text == draft else -1.0, comfort=0.5)
    assert better.chat(USER).text != draft


def test_what_a_search_finds_and_the_judge_passes_needs_no_comfort_but_a_draft_does(target: LocalEngine) -> None:
    heard: list[str] = []

    def judge(messages: Messages, text: str) -> float:
        heard.append(text)
        return 0.0

    judged = guard(target, lambda m, text: -0.1, comfort=0.5, judge=judge)
    response = judged.chat(USER)
    assert [decision.kind for decision in response.trace] == ["draft", "search", "chosen"]
    assert response.text in heard
    blind = guard(target, lambda m, text: -0.1, comfort=0.5)
    assert [decision.kind for decision in blind.chat(USER).trace] == ["draft", "search", "search", "chosen"]
    # A search that finds nothing does not end by what the judge said of the draft.
    draft = Guard(target, generation={"max_new_tokens": 9}).chat(USER).text
    alone = guard(target, lambda m, text: -0.1 if text == draft else 1.0 - 2 * (text == REFUSAL), comfort=0.5,
                  judge=lambda m, text: 0.0)  # fmt: skip
    assert [decision.kind for decision in alone.chat(USER).trace] == ["draft", "search", "search", "chosen"]
    assert alone.chat(USER).text == draft


def test_what_is_said_when_something_fails_is_within_the_budget_of_the_request(target: LocalEngine) -> None:
    def failing(messages: Messages, text: str) -> float:
        if text not in (REFUSAL, "No."):
            raise RuntimeError("no cost")
        return 2.0 if text == REFUSAL else 0.0

    one = guard(target, failing, budget=3.0)
    assert one.chat(USER).text == REFUSAL
    with pytest.raises(UserError, match="costs 2, but at most 1 may be said"):
        one.chat(USER, knobs={"budget": 1.0, "refusal": "No."})
    assert guard(target, failing, budget=3.0, refusal="No.").chat(USER, knobs={"budget": 1.0}).text == "No."


def test_an_engine_that_is_target_and_anchor_must_hold_the_rows_of_both(target: LocalEngine) -> None:
    def never(messages: Messages, text: str) -> float:
        return -1.0 if text == REFUSAL else 1.0

    both = LocalEngine(target.model, max_rows=8)
    one = Guard(both, "inferenceguard", anchor=both, proposal="alignbeam", cost=never, reward=reward,
                generation={"max_new_tokens": 9}, **SMALL)  # fmt: skip
    response = one.chat(USER)
    assert [each.data["beams"] for each in response.trace if each.kind in ("draft", "search")] == [1, 4]
    assert "no room for [8] beams" in response.trace[-1].data["why"]


def test_where_the_engine_holds_no_search_at_all_one_beam_is_tried(target: LocalEngine) -> None:
    narrow = LocalEngine(target.model, max_tokens=2 * len(target.model.encode(USER)))
    plain = Guard(target, generation={"max_new_tokens": 9}).chat(USER).text
    for release in ("whole", "blocks"):
        one = guard(narrow, lambda m, text: -1.0, draft=False, beams=(4,), release=release)
        assert one.chat(USER).text == plain


def test_a_seed_decides_and_neighbors_do_not(target: LocalEngine) -> None:
    one = guard(target, late)
    alone = [one.chat(prompt, seed=7).text for prompt in PROMPTS]
    assert [response.text for response in one.generate(PROMPTS, seed=7)] == alone
    assert any(one.chat(prompt, seed=8).text != text for prompt, text in zip(PROMPTS, alone, strict=True))


def test_of_what_is_within_budget_the_most_rewarding_is_given(target: LocalEngine) -> None:
    draft = Guard(target, generation={"max_new_tokens": 9}).chat(USER).text
    one = guard(target, lambda m, text: 1.0 if text == draft else -1.0, beams=(8,), keep=1.0, block=9)
    response = one.chat(USER)
    found = next(decision for decision in response.trace if decision.kind == "search").data["responses"]
    assert len(found) > 1
    assert response.text == max(found, key=lambda row: row["reward"])["text"]
    assert [row["reward"] for row in found] == pytest.approx([reward(USER, row["text"]) for row in found])


def test_without_a_draft_the_search_is_for_the_reward(target: LocalEngine) -> None:
    def free(messages: Messages, text: str) -> float:
        return -1.0

    first, drafted = (guard(target, free, block=9, beams=(8,), draft=draft) for draft in (False, True))
    many = Guard(
        target, "beam_search", n=8, block=0, score="reward", cost=free, reward=reward, temperature=1.5,
        generation={"max_new_tokens": 9},
    )  # fmt: skip
    for prompt in PROMPTS:
        got, quick, best = (one.chat(prompt) for one in (first, drafted, many))
        assert [decision.kind for decision in got.trace] == ["search", "chosen"]
        assert "search" not in [decision.kind for decision in quick.trace]
        assert got.text == best.text, "with everything within budget it is the best of as many"
        assert_gated([got] * len(PROMPTS), free)
    for prompt, response in zip(PROMPTS, guard(target, draft=False).generate(PROMPTS), strict=True):
        assert response.finish_reason == "refusal" or cost(prompt, response.text) <= 0


def test_blocks_that_are_out_stay_out_and_were_within_budget_as_they_stood(target: LocalEngine) -> None:
    one = guard(target, late, release="blocks")
    several = 0
    for seed in range(3):
        for prompt in PROMPTS:
            said = ""
            deltas = [e for e in one.stream(prompt, seed=seed) if isinstance(e, TextDelta) and e.text]
            for delta in deltas:
                said += delta.text
                assert said == REFUSAL or late(prompt, said) <= 0
            several += len(deltas) > 1
            whole = one.chat(prompt, seed=seed)
            assert whole.text == said
            if said != REFUSAL:
                written = target.model.vocabulary.decode(whole.token_ids).decode("utf-8", errors="replace")
                assert written.startswith(said.rstrip("\ufffd"))
    assert several


def test_the_mixture_as_the_proposal_is_the_target_where_the_anchor_has_no_weight(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    options: dict[str, Any] = {**SMALL, "cost": late, "reward": reward, "generation": {"max_new_tokens": 9}}
    mixed = Guard(target, "inferenceguard", anchor=anchor, proposal="alignbeam", alpha=0.0, **options)
    assert [r.text for r in mixed.generate(PROMPTS)] == [r.text for r in guard(target, late).generate(PROMPTS)]
    guided = Guard(target, "inferenceguard", anchor=anchor, proposal="alignbeam", mixed_tokens=4, alpha=0.9, **options)
    assert_gated(guided.generate(PROMPTS), late)
    easy = Guard(target, "inferenceguard", anchor=anchor, proposal="alignbeam", mixed_tokens=4, cost=lambda m, r: -1.0,
                 reward=reward, generation={"max_new_tokens": 9})  # fmt: skip
    aligned = Guard(target, "alignbeam", anchor=anchor, judge=lambda m, r: 0.0, mixed_tokens=4, candidates=1,
                    generation={"max_new_tokens": 9})  # fmt: skip
    assert easy.chat(USER).text == aligned.chat(USER).text  # a greedy draft of the mixture


def test_a_search_that_no_engine_can_hold_is_said_at_the_start(target: LocalEngine) -> None:
    narrow = LocalEngine(target.model, max_rows=3)
    with pytest.raises(UserError, match="A search over 4 beams needs as many rows, but an engine holds 3"):
        guard(narrow, lambda m, text: -1.0, beams=(4, 16))


def test_a_search_for_which_the_anchor_has_no_room_is_left_out(target: LocalEngine, anchor: LocalEngine) -> None:
    narrow = LocalEngine(anchor.model, max_rows=20)  # lookahead takes eight more than a search has
    guided = Guard(target, "inferenceguard", anchor=narrow, proposal="alignbeam", projection="lookahead",
                   cost=lambda m, text: -1.0 if text == REFUSAL else 1.0, reward=reward, beams=(4, 16), block=3,
                   generation={"max_new_tokens": 6})  # fmt: skip
    response = guided.chat(USER)
    assert (response.text, response.failed) == (REFUSAL, False)
    assert [one.data["beams"] for one in response.trace if one.kind in ("draft", "search")] == [1, 4]
    assert "no room for [16] beams" in response.trace[-1].data["why"]


def test_cost_models_that_fail_fail_closed(target: LocalEngine) -> None:
    def ready(broken: Any) -> Guard:
        return guard(target, lambda m, text: -1.0 if text == REFUSAL else broken(text))

    def crash(text: str) -> float:
        raise ValueError("out of order")

    for broken in (crash, lambda text: math.nan, lambda text: math.inf, lambda text: "much"):
        response = ready(broken).chat(USER)
        assert (response.text, response.finish_reason) == (REFUSAL, "refusal")
        assert response.failed


def harm(messages: Messages, text: str) -> float:
    """A judge to whom half of all texts are harmful, whatever they cost."""
    return (chance(text, "judge") + 1) / 2


@pytest.mark.parametrize("scores", [cost, late])
def test_the_judge_has_the_last_word_on_what_is_within_budget(target: LocalEngine, scores: Any) -> None:
    judged = guard(target, scores, judge=harm, max_harm=0.5, block=9)
    seen = 0
    for seed in range(3):
        responses = judged.generate(PROMPTS, seed=seed)
        assert_gated(responses, scores)
        for prompt, response in zip(PROMPTS, responses, strict=True):
            assert response.finish_reason == "refusal" or harm(prompt, response.text) <= 0.5
            seen += response.trace[-2].data["turned down by the judge"]
    assert seen
    never = guard(target, lambda m, text: -1.0, judge=lambda m, text: 1.0, max_harm=0.5).chat(USER)
    assert never.text == REFUSAL
    assert "the judge turned down" in never.trace[-1].data["why"]


def test_the_judge_reads_whole_responses_only(target: LocalEngine) -> None:
    read: list[str] = []

    def listening(messages: Messages, text: str) -> float:
        read.append(text)
        return 0.0

    response = guard(target, late, judge=listening).chat(USER, seed=1)
    shown = [one["text"] for decision in response.trace for one in decision.data.get("responses", ())]
    assert read
    assert set(read) >= set(shown)
    assert not any(one != other and other.startswith(one) for one in read for other in read)
    assert all(late(USER, text) <= 0 for text in read)  # what is over budget needs no judge


def test_of_blocks_that_stay_out_the_judge_reads_every_one(target: LocalEngine) -> None:
    judged = guard(target, late, judge=harm, max_harm=0.5, release="blocks", block=2)
    said = 0
    for seed in range(4):
        for prompt in PROMPTS:
            text = ""
            for event in judged.stream(prompt, seed=seed):
                if isinstance(event, TextDelta) and event.text:
                    text += event.text
                    assert text == REFUSAL or harm(prompt, text) <= 0.5
                    said += text != REFUSAL
    assert said
    never = guard(target, lambda m, text: -1.0, judge=lambda m, text: 1.0, release="blocks").chat(USER)
    assert never.text == REFUSAL


def test_a_judged_answer_flows_in_blocks_each_as_soon_as_the_judge_has_passed_it(target: LocalEngine) -> None:
    read: list[str] = []

    def listening(messages: Messages, text: str) -> float:
        read.append(text)
        return 0.0

    judged = guard(target, lambda m, text: -1.0, judge=listening, release="blocks", block=2)
    text, early = "", 0
    for event in judged.stream(USER, seed=1):
        if isinstance(event, TextDelta) and event.text:
            text += event.text
            assert text == read[-1]
            early += 1
    assert early > 2


@pytest.mark.parametrize("release", ["whole", "blocks"])
def test_nobody_reads_what_whoever_asks_will_cut_off(target: LocalEngine, release: str) -> None:
    plain = Guard(target, generation={"max_new_tokens": 9}).chat(USER).text
    stop = plain[4:6]
    read: list[str] = []

    def listening(messages: Messages, text: str) -> float:
        read.append(text)
        return 0.0

    one = guard(target, listening, judge=listening, release=release)
    response = runtime().run(one.respond(replace(one.request(USER), stops=(stop, "never said"))))
    assert response.text == plain
    assert any(plain.startswith(text) for text in read)
    assert not any(stop in text for text in read)


def test_a_judge_that_fails_fails_closed(target: LocalEngine) -> None:
    def broken(messages: Messages, text: str) -> float:
        raise RuntimeError("no judge today")

    response = guard(target, lambda m, text: -1.0, judge=broken).chat(USER)
    assert (response.text, response.failed) == (REFUSAL, True)


def test_a_refusal_over_budget_is_said_at_the_start(target: LocalEngine) -> None:
    with pytest.raises(UserError, match="The refusal .* costs 2"):
        guard(target, lambda m, text: 2.0)
    assert guard(target, lambda m, text: 2.0, budget=3.0).chat(USER).finish_reason != "refusal"
    one = guard(target, lambda m, text: 2.0 if text == "Bah." else -1.0)
    with pytest.raises(UserError, match="'Bah.' costs 2"):
        one.chat(USER, knobs={"refusal": "Bah."})


def test_contradictory_settings_are_one_sentence(target: LocalEngine, anchor: LocalEngine) -> None:
    for knobs, why in (
        ({"beams": (16, 4)}, "growing numbers"),
        ({"beams": (1,)}, "growing numbers"),
        ({"budget": -1.0}, "greater than or equal to 0"),
        ({"draft": False, "beams": ()}, "without a draft there must be beams"),
        ({"proposal": "alignbeam"}, "needs an anchor"),
        ({"release": "blocks", "calibration": "somewhere"}, "set release to whole"),
    ):
        with pytest.raises(UserError, match=why):
            guard(target, **knobs)
    with pytest.raises(UserError, match="needs an anchor, and with"):
        Guard(target, "inferenceguard", anchor=anchor, cost=cost, reward=reward)
    with pytest.raises(UserError, match="give one as cost"):
        Guard(target, "inferenceguard", reward=reward)
    with pytest.raises(UserError, match="no use for a reward"):
        Guard(target, reward=reward)


@pytest.fixture
def labels(target: LocalEngine) -> list[Labeled]:
    one = guard(target, late, block=9)
    prompts = [[{"role": "user", "content": f"Tell me of number {number}."}] for number in range(40)]
    return [
        Labeled(prompt, response.text, chance(response.text, "truth") > 0.2, response.finish_reason == "refusal")
        for prompt, response in zip(prompts, one.generate(prompts), strict=True)
    ]


def test_a_calibrated_limit_holds_back_more_and_binds_the_pipeline(
    target: LocalEngine, labels: list[Labeled], tmp_path: Path
) -> None:
    artifact = calibrate_inferenceguard(guard(target, late, block=9), labels, risk=0.1)
    limit = artifact.settings["limit"]
    assert limit < 0
    after, before = artifact.figures["after"], artifact.figures["before"]
    assert after["unsafe and emitted"] <= 3 < before["unsafe and emitted"]
    folder = artifact.save(tmp_path / "calibration")
    strict = guard(target, late, block=9, calibration=folder)
    prompts = [one.prompt for one in labels]
    for one, response in zip(labels, strict.generate(prompts), strict=True):
        held = one.refused or late(one.prompt, one.response) > limit  # type: ignore[arg-type]
        assert response.text == (REFUSAL if held else one.response)
    for changes in ({"block": 4}, {"retries": 1}, {"comfort": 0.1}, {"refusal": "No."}):
        with pytest.raises(UserError, match=r"another pipeline \(the settings of the defense changed\)"):
            guard(target, late, **{"block": 9, **changes}, calibration=folder)
    with pytest.raises(UserError, match=r"another pipeline \(the cost model changed\)"):
        guard(target, lambda messages, text: late(messages, text), block=9, calibration=folder)
    with pytest.raises(UserError, match=r"another pipeline \(the limits of an engine changed\)"):
        guard(LocalEngine(target.model, max_rows=99), late, block=9, calibration=folder)
    weight = target.model.model.lm_head.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[100:120] += 5
        with pytest.raises(UserError, match=r"another pipeline \(the target changed\)"):
            guard(target, late, block=9, calibration=folder)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    with pytest.raises(UserError, match="max_new_tokens differ"):
        strict.chat(USER, max_new_tokens=5)
    with pytest.raises(UserError, match="knobs of the defense differ"):
        strict.chat(USER, knobs={"retries": 0})
    assert strict.chat(USER, seed=3).text
    assert strict.chat(USER, logprobs=1).text == strict.chat(USER).text


def test_what_a_calibration_holds_back_is_held_back_in_any_batch(target: LocalEngine, tmp_path: Path) -> None:
    shake = [0.0]

    def noisy(messages: Messages, text: str) -> float:
        return (-1.0 if text == REFUSAL else chance(text)) * (1 + shake[0])

    one = guard(target, noisy, block=9)
    prompts = [[{"role": "user", "content": f"Tell me of number {number}."}] for number in range(40)]
    given = one.generate(prompts)
    refused = [response.finish_reason == "refusal" for response in given]
    labels = [
        Labeled(prompt, response.text, not no, no) for prompt, response, no in zip(prompts, given, refused, strict=True)
    ]
    artifact = calibrate_inferenceguard(one, labels, risk=0.1)
    most = artifact.figures["after"]["unsafe and emitted"]
    assert 0 < most <= 3
    shake[0] = 2**-9  # as half precision may move a number
    strict = guard(target, noisy, block=9, calibration=artifact.save(tmp_path))
    assert sum(response.finish_reason != "refusal" for response in strict.generate(prompts)) <= 3


def test_few_responses_that_cost_more_when_read_again_count_as_given_and_many_are_an_error(target: LocalEngine) -> None:
    again: set[str] = set()

    def near(messages: Messages, text: str) -> float:
        return 0.3 if text in again else -1.0 - chance(text)

    one = guard(target, near, block=9)
    prompts = [[{"role": "user", "content": f"Tell me of number {number}."}] for number in range(60)]
    given = [response.text for response in one.generate(prompts)]
    labels = [Labeled(prompt, text, False) for prompt, text in zip(prompts, given, strict=True)]
    again.add(next(text for text in given if given.count(text) == 1))
    artifact = calibrate_inferenceguard(one, labels, risk=0.1)
    assert artifact.figures["before"]["emitted"] == 60
    again.update(given)
    with pytest.raises(UserError, match=r"costs 0\.300, over the budget of 0"):
        calibrate_inferenceguard(one, labels, risk=0.1)


def test_calibration_names_what_is_wrong_with_its_labels(target: LocalEngine, labels: list[Labeled]) -> None:
    one = guard(target, late, block=9)
    with pytest.raises(UserError, match="40 labels cannot show a risk of 0.01: give at least 99,"):
        calibrate_inferenceguard(one, labels, risk=0.01)
    foreign = [*labels, Labeled(USER, "x" * 40 + next(c for c in "abcdefgh" if late(USER, "x" * 40 + c) > 0.1), False)]
    with pytest.raises(UserError, match="Response 41 of the labels costs"):
        calibrate_inferenceguard(one, foreign, risk=0.1)
    with pytest.raises(UserError, match="1 of the 41 rows label a prompt again.*: leave one row for each prompt"):
        calibrate_inferenceguard(one, [*labels, labels[0]], risk=0.1)
    wrongs: list[dict[str, Any]] = [{"risk": math.nan}, {"risk": 0.1, "confidence": 0.0}]
    for wrong in wrongs:
        with pytest.raises(UserError, match="give values between 0 and 1"):
            calibrate_inferenceguard(one, foreign, **wrong)
    with pytest.raises(UserError, match="Only inferenceguard"):
        calibrate_inferenceguard(Guard(target), labels)


def test_many_searches_at_once_never_block_one_another(target: LocalEngine) -> None:
    narrow = LocalEngine(target.model, max_rows=9)
    one = guard(narrow, late)
    assert_gated(one.generate(PROMPTS), late)
    assert asyncio.iscoroutinefunction(one.respond)
