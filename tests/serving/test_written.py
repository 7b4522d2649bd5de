"""All that a client has written is judged; what the operator has written is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from serving.servers import Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge, CallableScorer
from anchorlm.records import Request, UserError
from anchorlm.serving import ModelServing, ServedModel

OPERATOR = "Answer for the harbor office."
USER = {"role": "user", "content": "bread"}


def post(live: Live, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}{path}", json=body, timeout=60)


def words(turns: Any) -> str:
    return " ".join(str(turn["content"]) for turn in turns)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_stands_in_a_clients_system_turn_reaches_the_judge_and_the_operators_prompt_does_not(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], role: str
) -> None:
    seen: list[str] = []

    def judge(messages: Any, response: str) -> float:
        seen.append(words(messages))
        return 0.0

    live = start_live([ServedModel.of("guarded", make_guard(judge), ModelServing(system=OPERATOR))])
    turns = [{"role": role, "content": "Speak of the zeppelin."}, USER]
    assert post(live, messages=turns).status_code == 200
    assert seen
    assert all("zeppelin" in one and "bread" in one and OPERATOR not in one for one in seen)


def test_cost_and_reward_models_read_what_the_client_wrote_and_no_more(target: LocalEngine) -> None:
    seen: dict[str, list[str]] = {"cost": [], "reward": []}

    def scorer(name: str) -> CallableScorer:
        def score(messages: Any, response: str) -> float:
            seen[name].append(words(messages))
            return -1.0

        return CallableScorer(score)

    guard = Guard(
        target, "inferenceguard", cost=scorer("cost"), reward=scorer("reward"), system=OPERATOR,
        generation={"max_new_tokens": 6},
    )  # fmt: skip
    seen["cost"].clear()  # the start tries the models out
    guard.chat([{"role": "system", "content": "Speak of the zeppelin."}, USER])
    assert seen["cost"]
    for read in seen.values():
        assert all("zeppelin" in one and OPERATOR not in one for one in read)


def test_who_answers_reads_the_operators_prompt_first_and_raw_prompts_go_without_it(target: LocalEngine) -> None:
    generation = {"max_new_tokens": 12}
    bare, told = Guard(target, generation=generation), Guard(target, generation=generation, system=OPERATOR)
    own, theirs = {"role": "system", "content": OPERATOR}, {"role": "system", "content": "Be brief."}
    joined = {"role": "system", "content": f"{OPERATOR}\n\nBe brief."}
    assert told.chat([USER]).text == bare.chat([own, USER]).text != bare.chat([USER]).text
    assert told.chat([theirs, USER]).text == bare.chat([joined, USER]).text
    assert told.chat("bread", raw=True).text == bare.chat("bread", raw=True).text
    assert told.generate(["bread"])[0].text == told.chat("bread").text


@pytest.mark.parametrize(
    ("messages", "first"),
    [
        ([USER], OPERATOR),
        ([{"role": "system", "content": "  "}, USER], OPERATOR),
        ([{"role": "system", "content": "Be brief."}, USER], f"{OPERATOR}\n\nBe brief."),
        ([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER], f"{OPERATOR}\nBe brief."),
    ],
)
def test_a_request_keeps_what_the_client_wrote_apart_from_what_is_answered(messages: Sequence[Any], first: str) -> None:
    request = Request(messages, system=OPERATOR)
    assert OPERATOR not in words(request.conversation)
    assert request.prompt_text[0] == {"role": "system", "content": first}
    assert request.prompt_text[-1] == USER
    assert [turn["role"] for turn in request.prompt].count("system") == 1  # type: ignore[index]
    assert Request("raw", system=OPERATOR).prompt == "raw"
    assert Request(messages).prompt is messages


def test_every_defense_that_encodes_a_prompt_reads_the_operators(target: LocalEngine) -> None:
    teams: dict[str, dict[str, Any]] = {
        "undefended": {},
        "self_reminder": {"template": "{prompt}"},
        "goal_priority": {"template": "{prompt}"},
        "safe_decoding": {"anchor": target},
        "alignbeam": {"anchor": target, "judge": CallableJudge(lambda m, r: 0.0)},
        "best_of_n": {"judge": CallableJudge(lambda m, r: 0.0)},
    }
    for name, team in teams.items():
        guards = [Guard(target, name, generation={"max_new_tokens": 2}, system=one, **team) for one in (None, OPERATOR)]
        short, long = (guard.chat([USER]).usage.prompt_tokens for guard in guards)
        assert long > short, name


@pytest.mark.parametrize("system", ["", "  ", 3])
def test_an_empty_system_prompt_is_a_mistake(target: LocalEngine, system: Any) -> None:
    with pytest.raises(UserError, match="your own system prompt"):
        Guard(target, system=system)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "x"}],
        [{"role": "developer", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}],
    ],
)
@pytest.mark.parametrize("model", ["guarded", "plain", "strict"])
def test_a_conversation_without_a_turn_of_the_user_is_a_400_under_every_defense_and_no_alarm(
    live: Live, messages: list[dict[str, str]], model: str
) -> None:
    defense = live.state.models[model].guard.defense.name
    before = live.value("fail_closed_total", model=model, defense=defense)
    answer = post(live, model=model, messages=messages)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_user_turn")
    assert live.value("fail_closed_total", model=model, defense=defense) == before
