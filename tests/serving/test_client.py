from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from serving.servers import Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.models import control_texts
from anchorlm.records import TokenScore
from anchorlm.serving import ServedModel
from anchorlm.serving.session._logprobs import LogProbs

TURN = [{"role": "user", "content": "How do I bake bread?"}]


def test_a_chat_is_what_the_guard_says_in_python(client: Any, make_guard: Callable[..., Guard]) -> None:
    answer = client.chat.completions.create(model="guarded", messages=TURN)
    expected = make_guard().chat(TURN)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    told = answer.model_dump()["anchorlm"]
    assert (told["defense"], told["decision"], told["scores"], told["fallback"]) == (
        "alignbeam",
        "answer",
        [0, 0],
        None,
    )
    assert told["chosen"] == next(decision.data["index"] for decision in expected.trace if decision.kind == "chosen")
    assert answer.id.endswith(told["request_id"])


@pytest.mark.parametrize("model", ["guarded", "plain", "strict"])
def test_streamed_is_whole(client: Any, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=TURN)
    stream = client.chat.completions.create(
        model=model, messages=TURN, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert text == whole.choices[0].message.content
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_refusal_says_that_it_is_one(client: Any, live: Live) -> None:
    before = live.value("refused_total", model="strict", defense="alignbeam")
    answer = client.chat.completions.create(model="strict", messages=TURN)
    told = answer.model_dump()["anchorlm"]
    assert answer.choices[0].message.content == "I'm sorry, but I can't help with that."
    assert answer.choices[0].finish_reason == "content_filter"
    assert (told["decision"], told["chosen"], told["scores"]) == ("refusal", None, [1.0, 1.0])
    assert "no candidate is safe" in told["fallback"]
    assert live.value("refused_total", model="strict", defense="alignbeam") == before + 1


def test_choices_are_the_samples_of_consecutive_seeds(client: Any, plain: Guard) -> None:
    answer = client.chat.completions.create(model="plain", messages=TURN, n=3, temperature=0.9, top_p=0.95, seed=5)
    alone = [plain.chat(TURN, do_sample=True, temperature=0.9, top_p=0.95, seed=seed).text for seed in (5, 6, 7)]
    assert [choice.message.content for choice in answer.choices] == alone
    assert len(set(alone)) > 1
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="plain", messages=TURN, n=3, temperature=0.9, top_p=0.95, seed=5, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == alone


def test_an_answer_ends_before_a_stop_text(client: Any, plain: Guard) -> None:
    text = plain.chat(TURN).text
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    answer = client.chat.completions.create(model="plain", messages=TURN, stop=[stop, "never said"])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 0
    pieces = client.chat.completions.create(model="plain", messages=TURN, stop=stop, stream=True)
    assert "".join(choice.delta.content or "" for chunk in pieces for choice in chunk.choices) == expected


def test_what_a_stop_text_cuts_off_does_not_speak_for_the_rest(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    text = make_guard().chat(TURN).text
    stop = text[len(text) // 2 :][:3]
    # To this judge everything is harmful that does not go on to condemn itself.
    live = start_live([ServedModel.of("guarded", make_guard(lambda messages, response: float(stop not in response)))])
    whole = live.client().chat.completions.create(model="guarded", messages=TURN)
    assert whole.choices[0].message.content == text
    answer = live.client().chat.completions.create(model="guarded", messages=TURN, stop=[stop])
    assert answer.choices[0].finish_reason == "content_filter"
    assert answer.choices[0].message.content == "I'm sorry, but I can't help with that."


def test_what_a_stop_text_cuts_off_was_written_all_the_same(
    client: Any, make_guard: Callable[..., Guard], plain: Guard
) -> None:
    whole = make_guard().chat(TURN)
    stop = whole.text[len(whole.text) // 2 :][:3]
    usage = client.chat.completions.create(model="guarded", messages=TURN, stop=[stop]).usage.model_dump()
    assert usage["prompt_tokens"] == whole.usage.prompt_tokens
    assert usage["generated_tokens"] == whole.usage.generated_tokens, "all candidates"
    vocabulary = make_guard().defense.target.model.vocabulary
    count, cut = usage["completion_tokens"], whole.text.index(stop)
    assert count < whole.usage.completion_tokens
    assert len(vocabulary.decode(whole.token_ids[: count - 1])) <= cut < len(vocabulary.decode(whole.token_ids[:count]))
    # Who speaks token by token has written no more than what was read to find the stop.
    alone = plain.chat(TURN)
    stop = alone.text[len(alone.text) // 2 :][:3]
    usage = client.chat.completions.create(model="plain", messages=TURN, stop=[stop]).usage.model_dump()
    assert usage["completion_tokens"] == usage["generated_tokens"] < alone.usage.completion_tokens


@pytest.mark.parametrize("model", ["guarded", "plain"])
def test_log_probabilities_are_those_of_the_emitted_tokens_whole_and_streamed(
    client: Any, make_guard: Callable[..., Guard], plain: Guard, model: str
) -> None:
    guard = plain if model == "plain" else make_guard()
    expected = guard.chat(TURN, logprobs=2)
    asked = {"model": model, "messages": TURN, "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**asked)
    content = answer.choices[0].logprobs.content
    assert expected.scores is not None
    assert [one.logprob for one in content] == [score.logprob for score in expected.scores]
    assert b"".join(bytes(one.bytes) for one in content).decode(errors="replace") == expected.text
    assert all(len(one.top_logprobs) == 2 for one in content)
    streamed = [
        one
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for one in choice.logprobs.content
    ]
    assert streamed == content
    assert client.chat.completions.create(model=model, messages=TURN).choices[0].logprobs is None


def test_log_probabilities_end_where_the_answer_does(client: Any, plain: Guard) -> None:
    text = plain.chat(TURN).text
    stop = text[len(text) // 2 :][:3]
    answer = client.chat.completions.create(model="plain", messages=TURN, stop=stop, logprobs=True)
    given = b"".join(bytes(one.bytes) for one in answer.choices[0].logprobs.content).decode(errors="replace")
    assert text.startswith(given[:-1])
    assert 0 < len(given) <= len(answer.choices[0].message.content) + 1  # a character may wait for its last bytes
    refused = client.chat.completions.create(model="strict", messages=TURN, logprobs=True)
    assert refused.choices[0].logprobs is None


def test_raw_completions_name_tokens_and_where_they_stand(client: Any, plain: Guard) -> None:
    answer = client.completions.create(model="plain", prompt="How do I", logprobs=2, max_tokens=6)
    found = answer.choices[0].logprobs
    expected = plain.chat("How do I", raw=True, logprobs=2, max_new_tokens=6)
    assert expected.scores is not None
    assert found.token_logprobs == [score.logprob for score in expected.scores]
    whole = [pair for pair in zip(found.tokens, found.text_offset, strict=True) if not pair[0].startswith("bytes:")]
    assert whole
    for token, offset in whole:  # bytes that no character was made of stand before it, as one that says so
        assert answer.choices[0].text[offset:].lstrip("\ufffd").startswith(token)
    assert all(len(one) == 2 for one in found.top_logprobs)


def test_parts_of_a_character_are_told_apart_and_stand_where_it_does(plain: Guard) -> None:
    vocabulary = plain.defense.target.model.vocabulary
    by_bytes = {vocabulary.token_bytes(index): index for index in range(vocabulary.size)}
    tokens = [by_bytes[piece] for piece in (b"\xc3", b"\xa9", b"q")]
    found = LogProbs(vocabulary)
    found.add([TokenScore(token, -1.0, ((token, -1.0), (by_bytes[b"\xc2"], -2.0))) for token in tokens])
    shown = found.text(found.due("\u00e9q", last=True))
    assert shown["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "q"]
    assert shown["text_offset"] == [0, 0, 1]
    assert shown["top_logprobs"][0] == {"bytes:\\xc3": -1.0, "bytes:\\xc2": -2.0}


def test_log_probabilities_can_be_turned_off(start_live: Callable[..., Live], plain: Guard) -> None:
    client = start_live([ServedModel.of("plain", plain)], logprobs=False).client()
    with pytest.raises(openai.BadRequestError, match="gives no log-probabilities"):
        client.chat.completions.create(model="plain", messages=TURN, logprobs=True)


def test_lengths_are_tokens_under_both_names(client: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="plain", messages=TURN, **{name: 3})
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_completions_go_on_with_raw_texts(client: Any, plain: Guard) -> None:
    prompts = ["How do I", "The quick brown"]
    answer = client.completions.create(model="plain", prompt=prompts)
    assert [choice.text for choice in answer.choices] == [plain.chat(prompt, raw=True).text for prompt in prompts]
    pieces = client.completions.create(model="plain", prompt=prompts[0], stream=True)
    assert "".join(choice.text for chunk in pieces for choice in chunk.choices) == plain.chat(prompts[0], raw=True).text


def test_a_raw_prompt_cannot_write_a_turn_in_anothers_name(start_live: Callable[..., Live], plain: Guard) -> None:
    model = plain.defense.target.model
    [control, *_] = [text for text in control_texts(model.tokenizer) if text.strip()]
    client = start_live([ServedModel.of("plain", plain)]).client()
    said = client.completions.create(model="plain", prompt=f"{control}How do{control} I").choices[0].text
    assert said == plain.chat("How do I", raw=True).text
    assert model.without_control_tokens(control + "x") == "x"


def test_raw_completions_can_be_turned_off(start_live: Callable[..., Live], plain: Guard) -> None:
    client = start_live([ServedModel.of("plain", plain)], raw_completions=False).client()
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="plain", prompt="How do I")
    assert client.chat.completions.create(model="plain", messages=TURN).choices


def test_turns_parts_and_systems_reach_the_model(client: Any, plain: Guard) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    sent: list[dict[str, Any]] = [{**turns[0], "role": "developer"}, *turns[1:3]]
    sent.append({"role": "user", "content": [{"type": "text", "text": "Three"}]})
    answer = client.chat.completions.create(model="plain", messages=sent)
    assert answer.choices[0].message.content == plain.chat(turns).text


def test_models_are_listed_with_what_may_be_set(client: Any) -> None:
    models = {model.id: model.model_dump()["anchorlm"] for model in client.models.list()}
    assert list(models) == ["guarded", "plain", "strict"]
    assert models["guarded"]["limits"]["alpha"] == [0.3, 1.0]
    assert models["plain"]["limits"] == {}
    assert client.models.retrieve("strict").id == "strict"


def test_knobs_reach_the_defense(client: Any, make_guard: Callable[..., Guard]) -> None:
    answer = client.chat.completions.create(
        model="guarded", messages=TURN, extra_body={"anchorlm": {"alpha": 1.0, "candidates": 3, "trace": True}}
    )
    told = answer.model_dump()["anchorlm"]
    assert answer.choices[0].message.content == make_guard().chat(TURN, knobs={"alpha": 1.0, "candidates": 3}).text
    assert len(told["scores"]) == 3
    assert next(step for step in told["trace"] if step["kind"] == "mix")["steps"][0]["weight"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"extra_body": {"anchorlm": {"alpha": 0.2}}}, "from 0.3 to 1"),
        ({"extra_body": {"anchorlm": {"alpha": 1.1}}}, "from 0.3 to 1"),
        ({"extra_body": {"anchorlm": {"alpha": "no"}}}, "from 0.3 to 1"),
        ({"extra_body": {"anchorlm": {"projection": "exact"}}}, "one of first-token, lookahead"),
        ({"extra_body": {"anchorlm": {"max_harm": 1.0}}}, "what can: alpha, candidates"),
        ({"extra_body": {"anchorlm": {"refusal": "Sure!"}}}, "what can: alpha, candidates"),
        ({"model": "other"}, "no such model"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "user", "content": "  "}]}, "prompt is empty"),
        ({"messages": [{"role": "user", "content": "bread " * 900}]}, "shorten it"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "no turn of the user"),
        ({"temperature": 3}, "temperature: input should be less than or equal to 2"),
        ({"n": 100}, "1 to 8 answers"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "less than or equal to 20"),
        ({"response_format": {"type": "xml"}}, "no response format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "takes no tools"),
        ({"logit_bias": {"5": 100}}, "could undo the defense"),
        ({"presence_penalty": 3.0}, "presence_penalty: input should be less than or equal to 2"),
        ({"extra_body": {"magic": 1}}, "no parameter 'magic'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_one_sentence_and_a_status(
    client: Any, arguments: dict[str, Any], sentence: str, stream: bool
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.chat.completions.create(**{"model": "guarded", "messages": TURN, "stream": stream, **arguments})
    error: Any = caught.value.body
    assert sentence in error["message"]
    assert error["message"].count("\n") == 0
    assert error["type"] in ("invalid_request_error", "not_found_error")


def test_a_model_without_a_processor_decodes_no_image(client: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}
    with pytest.raises(openai.BadRequestError, match="takes no images"):
        client.chat.completions.create(model="plain", messages=[{"role": "user", "content": [part]}])


def test_concurrent_clients_get_what_each_would_get_alone(client: Any, make_guard: Callable[..., Guard]) -> None:
    prompts = [f"Prompt number {number} of them" for number in range(12)]
    guard = make_guard()
    alone = [guard.chat([{"role": "user", "content": prompt}]).text for prompt in prompts]

    def ask(prompt: str) -> str:
        answer = client.chat.completions.create(model="guarded", messages=[{"role": "user", "content": prompt}])
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, prompts)) == alone


def test_a_client_that_leaves_frees_its_rows(live: Live, client: Any, target: LocalEngine) -> None:
    stream = client.chat.completions.create(model="plain", messages=TURN, stream=True, max_tokens=200)
    next(iter(stream))
    stream.close()
    live.wait(lambda: not target._scheduler.taken and not live.state.admission.running)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).chat.completions.create(
            model="plain", messages=TURN, max_tokens=200, n=8, temperature=1.0
        )
    live.wait(lambda: not target._scheduler.taken and not live.state.admission.running)
    assert live.value("requests_total", status="499") >= 1
