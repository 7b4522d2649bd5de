"""Fields that clients of vLLM and llama-server send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.records import GenerationSettings, UserError
from anchorlm.serving import ModelServing, ServedModel

TURN = [{"role": "user", "content": "How do I bake bread?"}]
FIELDS: dict[str, Any] = {
    "top_k": 7, "min_p": 0.02, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.25,
}  # fmt: skip


def post(live: Live, **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/chat/completions", json={"model": "plain", "messages": TURN, **body}, timeout=60)


def test_sampling_fields_do_in_the_server_what_they_do_in_python(client: Any, plain: Guard) -> None:
    own = {name: value for name, value in FIELDS.items() if name in ("presence_penalty", "frequency_penalty")}
    other = {name: value for name, value in FIELDS.items() if name not in own}
    answer = client.chat.completions.create(
        model="plain", messages=TURN, temperature=0.9, seed=5, extra_body=other, **own
    )
    alone = plain.chat(TURN, do_sample=True, temperature=0.9, seed=5, **FIELDS)
    assert answer.choices[0].message.content == alone.text
    raw = client.completions.create(model="plain", prompt="How do I", temperature=0.9, seed=5, extra_body=other, **own)
    text = plain.chat("How do I", raw=True, do_sample=True, temperature=0.9, seed=5, **FIELDS).text
    assert raw.choices[0].text == text


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_alone_reaches_the_sampler(live: Live, plain: Guard, name: str) -> None:
    strong: Any = {"top_k": 1, "min_p": 1.0, "repetition_penalty": 1.5, "presence_penalty": 2, "frequency_penalty": 2}[
        name
    ]
    sent = post(live, temperature=2.0, seed=3, **{name: strong}).json()["choices"][0]["message"]["content"]
    assert sent == plain.chat(TURN, do_sample=True, temperature=2.0, seed=3, **{name: strong}).text
    assert sent != plain.chat(TURN, do_sample=True, temperature=2.0, seed=3).text


def test_a_top_k_of_minus_one_or_zero_takes_back_what_the_recipe_says(
    start_live: Callable[..., Live], plain: Guard
) -> None:
    narrow = Guard(plain.defense.target, generation={"max_new_tokens": 12, "top_k": 1})
    live = start_live([ServedModel.of("plain", narrow)])
    texts = [post(live, temperature=2.0, seed=3, **sent).json()["choices"][0]["message"]["content"] for sent in
             ({}, {"top_k": 0}, {"top_k": -1})]  # fmt: skip
    assert texts[0] == plain.chat(TURN).text
    assert texts[1] == texts[2] == plain.chat(TURN, do_sample=True, temperature=2.0, seed=3).text


@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_a_stop_token_ends_the_answer_before_it(live: Live, make_guard: Callable[..., Guard], model: str) -> None:
    whole = post(live, model=model).json()
    text = whole["choices"][0]["message"]["content"]
    guard = make_guard() if model == "guarded" else live.state.models["plain"].guard
    stop = guard.chat(TURN).token_ids[4]
    answer = post(live, model=model, stop_token_ids=[stop]).json()["choices"][0]
    cut = answer["message"]["content"]
    assert answer["finish_reason"] == "stop"
    assert text.startswith(cut.rstrip("\ufffd"))
    assert len(cut) < len(text)
    unknown = post(live, model=model, stop_token_ids=[10**6]).json()["choices"][0]["message"]["content"]
    assert unknown == text


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"ignore_eos": True}, "defeat the guard"),
        ({"min_tokens": 4}, "defeat the guard"),
        ({"skip_special_tokens": False}, "control tokens"),
    ],
)
def test_what_would_defeat_a_guard_is_refused_in_one_sentence(live: Live, sent: dict[str, Any], words: str) -> None:
    error = post(live, **sent).json()["error"]
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == next(iter(sent))
    assert words in error["message"]
    assert error["message"].count(".") == 1


def test_the_same_fields_with_values_that_ask_for_nothing_pass(live: Live) -> None:
    body = {"ignore_eos": False, "min_tokens": 0, "skip_special_tokens": True, "presence_penalty": 0, "min_p": 0,
            "repetition_penalty": 1, "top_k": -1, "stop_token_ids": []}  # fmt: skip
    texts = [post(live, **sent).json()["choices"][0]["message"]["content"] for sent in (body, {})]
    assert texts[0] == texts[1]


def test_ignoring_the_end_is_refused_in_python_and_in_recipes_too(plain: Guard) -> None:
    with pytest.raises(UserError, match="ignore_eos = True .*would defeat the guard"):
        plain.chat(TURN, ignore_eos=True)
    assert "ignore_eos" not in GenerationSettings().model_dump()


@pytest.mark.parametrize(
    "sent",
    [{"top_k": -2}, {"top_k": 1.5}, {"min_p": 2}, {"repetition_penalty": 0}, {"presence_penalty": 3},
     {"frequency_penalty": -3}, {"stop_token_ids": [-1]}, {"stop_token_ids": list(range(65))},
     {"stop_token_ids": ["x"]}, {"stream_options": {"continuous_usage_stats": 1}, "stream": True}],
)  # fmt: skip
def test_a_value_out_of_range_is_a_400_that_names_its_field(live: Live, sent: dict[str, Any]) -> None:
    answer = post(live, **sent)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(next(iter(sent)))


def test_a_penalty_that_could_forbid_the_words_of_a_refusal_takes_the_operators_leave(
    start_live: Callable[..., Live], live: Live, plain: Guard
) -> None:
    for value in (1.6, 0.5, 100):
        error = post(live, repetition_penalty=value).json()["error"]
        assert (error["code"], error["param"]) == ("out_of_bounds", "repetition_penalty")
        assert "from 1 to 1.5" in error["message"]
    serving = ModelServing(sampling={"repetition_penalty": (0.5, 2.0), "top_k": (1, 50)})
    other = start_live([ServedModel.of("plain", plain, serving)])
    assert post(other, repetition_penalty=1.9).status_code == 200
    assert post(other, top_k=51).json()["error"]["param"] == "top_k"
    assert post(other, top_k=-1).json()["error"]["param"] == "top_k"


@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_continuous_usage_counts_up_to_what_the_whole_answer_costs(client: Any, model: str) -> None:
    options: dict[str, Any] = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(model=model, messages=TURN, stream=True, stream_options=options))
    last = chunks[-1].usage
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-2] == counts[-1] == last.completion_tokens > 0
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {last.prompt_tokens}
    assert {chunk.usage.total_tokens - chunk.usage.completion_tokens for chunk in chunks} == {last.prompt_tokens}
    # As vLLM has it, it says nothing without include_usage.
    alone = client.chat.completions.create(
        model=model, messages=TURN, stream=True, stream_options={"continuous_usage_stats": True}
    )
    assert all(chunk.usage is None for chunk in alone)
