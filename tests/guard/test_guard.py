from __future__ import annotations

import asyncio
import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from factories import tiny_model

from anchorlm.defenses import Defense, find_defense
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard, gaps
from anchorlm.judging import CallableJudge, Judge
from anchorlm.records import Access, Decision, DefenseError, Request, TextDelta, UserError

TARGET = LocalEngine(tiny_model("llama"))
JUDGE = CallableJudge(lambda messages, response: 0.0)
GENERATION = {"max_new_tokens": 8}


@pytest.fixture
def guard() -> Guard:
    return Guard(TARGET, generation=GENERATION)


def test_a_text_is_a_user_turn_everywhere_and_raw_where_that_is_said(guard: Guard) -> None:
    [turn] = guard.generate(["bread"])
    assert turn == guard.chat("bread") == guard.chat([{"role": "user", "content": "bread"}])
    assert "".join(e.text for e in guard.stream("bread") if isinstance(e, TextDelta)) == turn.text
    assert guard.chat("bread", raw=True).usage.prompt_tokens < turn.usage.prompt_tokens
    with pytest.raises(UserError, match="raw = True takes a text"):
        guard.chat([{"role": "user", "content": "bread"}], raw=True)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [([{"role": "user", "content": "bread"}], "this is one: call chat"), (5, "takes a list"), ({}, "takes a list")],
)
def test_what_is_no_list_of_prompts_is_one_sentence(guard: Guard, prompts: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        guard.generate(prompts)


def test_a_reason_for_failing_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(messages: Any, response: str) -> float:
        raise ConnectionError("out")

    guard = Guard(TARGET, "best_of_n", judge=broken, n=2, generation=GENERATION)
    assert all(response.failed for response in guard.generate(["a", "b", "c"]))
    assert sum("out" in record.getMessage() for record in caplog.records) == 1


def test_a_response_holds_its_tokens_without_the_prompt(guard: Guard) -> None:
    response = guard.chat("How do I bake")
    assert len(response.token_ids) == response.usage.completion_tokens
    assert TARGET.model.vocabulary.decode(response.token_ids).decode(errors="replace") == response.text
    assert (response.finish_reason == "length") == (len(response.token_ids) == 8)


def test_streamed_is_whole_on_both_faces(guard: Guard) -> None:
    whole = guard.chat("How do I bake", max_new_tokens=20)

    async def collect() -> str:
        events = guard.astream("How do I bake", max_new_tokens=20)
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])

    pieces = [event.text for event in guard.stream("How do I bake", max_new_tokens=20) if isinstance(event, TextDelta)]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text == asyncio.run(collect())
    assert asyncio.run(guard.achat("How do I bake", max_new_tokens=20)).text == whole.text


def test_a_stream_that_is_left_early_frees_its_row() -> None:
    guard = Guard(LocalEngine(TARGET.model, max_rows=1), generation={"max_new_tokens": 50})
    for _ in range(3):
        stream: Any = guard.stream("How do I bake")
        next(stream)
        stream.close()
    assert guard.chat("How do I bake").token_ids


def test_one_mistake_among_many_requests_costs_only_its_own_row(guard: Guard) -> None:
    requests = [guard.request(text) for text in ("a", "b" * 2_000, "c", " ")]
    outcomes: dict[int, Any] = dict(guard.map(requests))
    assert isinstance(outcomes[1], UserError)
    assert "shorten it" in str(outcomes[1])
    assert isinstance(outcomes[3], UserError)
    assert "empty" in str(outcomes[3])
    assert outcomes[0].text == guard.chat("a", raw=True).text
    assert outcomes[2].text == guard.chat("c", raw=True).text


def test_requests_are_drawn_only_as_they_are_needed(guard: Guard) -> None:
    drawn = 0

    def endless() -> Any:
        nonlocal drawn
        while True:
            drawn += 1
            yield guard.request("a", max_new_tokens=1)

    outcomes: Any = guard.map(endless(), concurrency=4)
    assert [next(outcomes)[1].text for _ in range(10)]
    outcomes.close()
    assert drawn <= 20


def test_callers_in_several_threads_and_loops_share_one_engine(guard: Guard) -> None:
    async def many() -> list[str]:
        responses = await asyncio.gather(*(guard.achat(text) for text in "abcdef"))
        return [response.text for response in responses]

    assert asyncio.run(many()) == [guard.chat(text).text for text in "abcdef"]
    assert asyncio.run(many()) == [response.text for response in map(guard.chat, "abcdef")]


class Collapsing(Defense):
    """A defense that fails after it has said `before`."""

    name = "collapsing"
    before = ""

    async def respond(self, request: Request) -> Any:
        if self.before:
            yield TextDelta(self.before)
        raise DefenseError("The gate is not a number.")


def test_a_defense_that_fails_before_it_spoke_gives_the_refusal() -> None:
    response = Guard(TARGET, Collapsing, refusal="No.").chat("x")
    assert (response.text, response.finish_reason) == ("No.", "refusal")
    assert response.trace[0].data == {"why": "The gate is not a number."}


def test_a_defense_that_fails_in_the_middle_of_its_text_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Collapsing, "before", "Sure, ")
    with pytest.raises(DefenseError, match="not a number"):
        Guard(TARGET, Collapsing).chat("x")


def test_a_target_whose_logits_are_nan_is_one_sentence() -> None:
    model = tiny_model("llama")
    engine = LocalEngine(model)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[3] = float("nan")
    teams: dict[str, dict[str, Any]] = {"undefended": {}, "alignbeam": {"anchor": TARGET, "judge": JUDGE}}
    for defense, extra in teams.items():
        with pytest.raises(UserError, match="logits that are not numbers"):
            Guard(engine, defense, **extra).chat("x", max_new_tokens=4)


@pytest.mark.parametrize(
    ("defense", "anchor", "judge", "sentence"),
    [
        ("alignbeam", None, JUDGE, "guided by an anchor: give a small aligned model"),
        ("alignbeam", TARGET, None, "give a judge"),
        ("undefended", TARGET, None, "has no use for an anchor: leave it out"),
        ("self_reminder", None, JUDGE, "has no use for a judge: leave it out"),
        ("best_of_n", None, None, "give a judge"),
        ("magic", None, None, "There is no defense 'magic'; installed are: alignbeam"),
    ],
)
def test_a_gap_between_defense_and_models_names_its_remedy(
    defense: str, anchor: LocalEngine | None, judge: Judge | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Guard(TARGET, defense, anchor=anchor, judge=judge)


def test_gaps_names_everything_at_once() -> None:
    found = gaps(find_defense("alignbeam"), target=Access.TEXT, anchor=None, judge=False)
    assert len(found) == 3
    assert gaps(find_defense("alignbeam"), target=Access.LOGITS, anchor=Access.LOGITS, judge=True) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": 0}, "temperature = 0 does not fit generation"),
        ({"max_tokens": 5}, "generation has no setting 'max_tokens'; it has: do_sample, frequency_penalty, "),
        ({"top_p": 1.5}, "top_p = 1.5 does not fit"),
    ],
)
def test_a_wrong_generation_setting_is_one_sentence(guard: Guard, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        guard.chat("x", **settings)


def test_a_failed_knob_is_found_before_a_model_is_loaded() -> None:
    with pytest.raises(UserError, match="alpha"):
        Guard("no/such-model", "alignbeam", anchor="no/such-anchor", alpha=2)


def test_many_threads_of_callers_are_batched_together() -> None:
    engine = LocalEngine(TARGET.model)
    guard = Guard(engine, generation={"max_new_tokens": 8})
    alone = guard.chat("bread").text
    before = engine.runner.forwards
    with ThreadPoolExecutor(16) as callers:
        texts = list(callers.map(lambda _: guard.chat("bread").text, range(16)))
    assert set(texts) == {alone}
    assert engine.runner.forwards - before < 16 * 8 / 2


def test_a_single_text_is_one_prompt() -> None:
    guard = Guard(TARGET, generation={"max_new_tokens": 3})
    assert [response.text for response in guard.generate("bread")] == [guard.generate(["bread"])[0].text]


class Endless(Defense):
    """A defense that forgets to say that it is done."""

    name = "endless"

    async def respond(self, request: Request) -> Any:
        yield Decision("nothing", {})


def test_a_defense_that_never_finishes_gives_the_refusal() -> None:
    response = Guard(TARGET, Endless, refusal="No.").chat("x")
    assert (response.text, response.finish_reason) == ("No.", "refusal")
    assert "ended without a final event" in response.trace[-1].data["why"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": None}, "A NoneType is no model for a guard: give a Hub id"),
        ({"target": {"path": "x", "dtype": "int3"}}, "dtype = 'int3' does not fit a model"),
        ({"engine": {"max_row": 4}}, "engine has no setting 'max_row'"),
        ({"on_error": "ignore"}, "on_error = 'ignore' is neither"),
        ({"defense": "best_of_n", "judge": 3}, "A int is no judge"),
    ],
)
def test_what_a_guard_cannot_take_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Guard(**{"target": TARGET, **arguments})


def test_a_judge_may_be_a_model_a_path_or_an_engine(tmp_path: Path) -> None:
    for judge in (TARGET, TARGET.model):
        assert Guard(TARGET, "best_of_n", judge=judge).defense.judge.name.startswith("rubric:")
    with pytest.raises(UserError, match="no-such-judge"):
        Guard(TARGET, "best_of_n", judge=tmp_path / "no-such-judge")


class Talking(Defense):
    """A defense that must see its whole text before it may speak, but does not wait."""

    name = "talking"
    streams = "whole"

    async def respond(self, request: Request) -> Any:
        yield TextDelta("Sure, ")
        raise DefenseError("Only now it is clear that this is harmful.")


def test_what_is_not_final_is_held_back() -> None:
    assert Guard(TARGET, Talking, refusal="No.").chat("x").text == "No."


class Rubbish(Judge):
    """A third party's judge without any care."""

    name = "rubbish"
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def __call__(self, messages: Any, responses: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [None, [], "safe", [0.0], ConnectionError("down")])
def test_a_judge_of_any_kind_fails_closed(answer: Any) -> None:
    guard = Guard(TARGET, "best_of_n", judge=Rubbish(answer), n=2, generation=GENERATION, refusal="No.")
    assert guard.chat("x").text == "No."


def test_a_request_that_ends_just_before_its_judge_is_asked_leaves_no_call_behind() -> None:
    guard = Guard(TARGET, "best_of_n", judge=JUDGE, n=2, generation=GENERATION)

    async def leave() -> None:
        work = asyncio.ensure_future(guard.defense.grades(Request([{"role": "user", "content": "x"}]), ["y"]))
        await asyncio.sleep(0)  # the calls are planned, and none has begun
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(leave())
        gc.collect()
    assert not [one.message for one in seen if "never awaited" in str(one.message)]


def test_a_judge_may_be_a_function() -> None:
    assert Guard(TARGET, "best_of_n", judge=lambda messages, response: 0.0, n=2, generation=GENERATION).chat("x").text


@pytest.mark.parametrize("messages", ["", " ", [], [{"role": "user"}], [{"role": "user", "content": "  "}]])
@pytest.mark.parametrize("defense", ["undefended", "self_reminder"])
def test_an_empty_prompt_is_one_sentence(defense: str, messages: Any) -> None:
    with pytest.raises(UserError, match="give"):
        Guard(TARGET, defense).chat(messages)
