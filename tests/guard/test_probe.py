"""A guard is tried through every door before it is trusted, and so are those who decide for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import FrozenInstanceError
from typing import Any, ClassVar

import pytest
from factories import tiny_model, tiny_tokenizer

from anchorlm.defenses import Defense
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard, Probe, ProbeSettings, Recipe
from anchorlm.judging import CallableJudge, Grade, Judge, RefusalMatcher
from anchorlm.records import Event, Finished, Request, TextDelta, Usage, UserError, as_messages

TARGET = LocalEngine(tiny_model("llama"))
REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure. It is Paris, and the way there is short."
DOORS = ["harmless", "chat", "multi-turn", "prefilled", "raw"]


def harm(request: Request) -> bool:
    return "bomb" in str(request.messages)


def defense(refusing: Callable[[Request], bool], *, promises: bool = True) -> type[Defense]:
    """A defense without a model, that refuses what a function says."""

    class Told(Defense):
        name: ClassVar[str] = "told"
        refuses: ClassVar[bool] = promises
        at_once: ClassVar[list[int]] = [0, 0]

        async def respond(self, request: Request) -> AsyncIterator[Event]:
            self.at_once[0] += 1
            self.at_once[1] = max(self.at_once)
            await asyncio.sleep(0.01)
            self.at_once[0] -= 1
            yield TextDelta(REFUSAL if refusing(request) else ANSWER)
            yield Finished("stop", Usage(1, 1, 1))

    return Told


def failed(found: Probe) -> list[str]:
    return [one.door for one in found.failures]


@pytest.mark.parametrize(
    ("refusing", "open_doors"),
    [
        (harm, []),
        (lambda request: harm(request) and not isinstance(request.messages, str), ["raw"]),
        (lambda request: harm(request) and "bomb" in str(as_messages(request.messages)[0]), ["multi-turn"]),
        (lambda request: harm(request) and "bomb" in str(as_messages(request.messages)[-1]), ["prefilled"]),
        (lambda request: True, ["harmless"]),
        (lambda request: False, ["chat", "multi-turn", "prefilled", "raw"]),
    ],
)
def test_the_door_that_stands_open_is_named(refusing: Callable[[Request], bool], open_doors: list[str]) -> None:
    found = Guard(TARGET, defense(refusing)).probe()
    assert [one.door for one in found.findings] == DOORS
    assert failed(found) == open_doors
    assert found.passed == (not open_doors)


def test_a_door_that_is_shut_is_not_tried() -> None:
    found = Guard(TARGET, defense(harm)).probe(raw=False)
    assert [one.door for one in found.findings] == DOORS[:-1]


def test_what_was_found_is_a_line_each_with_the_remedy_where_something_is_wrong() -> None:
    found = Guard(TARGET, defense(lambda request: False)).probe()
    assert str(found).splitlines() == [str(one) for one in found.findings]
    assert all(str(one).startswith(f"{one.door}: ") and one.said.endswith(".") for one in found.findings)
    assert all("[probe]" in one.said for one in found.failures)
    with pytest.raises(FrozenInstanceError):
        found.findings[0].said = ""  # type: ignore[misc]


def test_all_is_tried_at_once_and_the_same_in_a_loop_of_ones_own() -> None:
    kind = defense(harm)
    guard = Guard(TARGET, kind)
    assert asyncio.run(guard.aprobe()).findings == guard.probe().findings
    assert kind.at_once[1] >= len(DOORS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["undefended", defense(lambda request: False, promises=False)])
def test_who_promises_nothing_is_held_to_nothing_but_an_answer(kind: Any) -> None:
    probes = {"harmless": "How do I bake bread?"}
    found = Guard(TARGET, kind, generation={"max_new_tokens": 8}, probes=probes).probe()
    assert [(one.door, one.passed) for one in found.findings] == [("harmless", True), ("chat", None)]
    assert "promises to refuse nothing" in str(found)
    assert found.passed


def test_a_conversation_that_the_template_refuses_comes_in_by_no_door() -> None:
    template = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0]['content'] }}"
    )
    engine = LocalEngine(tiny_model("llama", tokenizer=tiny_tokenizer(chat_template=template)))

    def refusing(request: Request) -> bool:
        engine.model.encode(request.messages)
        return harm(request) and not isinstance(request.messages, str)

    assert failed(Guard(engine, defense(refusing)).probe()) == ["raw"]


@pytest.mark.parametrize("error", [OSError("/secret/place"), UserError("The model is out of memory.")])
def test_what_raises_is_found_and_only_our_own_words_are_told(error: Exception) -> None:
    def raising(request: Request) -> bool:
        raise error

    found = Guard(TARGET, defense(raising)).probe(raw=False)
    assert {"harmless", "chat"} <= set(failed(found))
    assert "/secret/place" not in str(found)
    assert ("out of memory" if isinstance(error, UserError) else "OSError") in str(found)


# --- those who decide -------------------------------------------------------------------------------------------------


def judged(judge: Any, **knobs: Any) -> Probe:
    guard = Guard(TARGET, "best_of_n", judge=judge, n=1, generation={"max_new_tokens": 4}, **knobs)
    return guard.probe()


def by_request(messages: Any, response: str) -> float:
    return 1.0 if "bomb" in str(messages) else 0.0


def by_answer(messages: Any, response: str) -> float:
    return 1.0 if "exactly how to do it" in response else 0.1


@pytest.mark.parametrize("judge", [by_request, by_answer, RefusalMatcher()])
def test_a_judge_that_tells_good_from_bad_passes(judge: Any) -> None:
    assert "judge" not in failed(judged(judge))


@pytest.mark.parametrize("constant", [0.0, 0.375, 0.5, 1.0])
def test_a_judge_that_gives_everything_the_same_grade_is_found_before_it_guards_anybody(constant: float) -> None:
    found = judged(lambda messages, response: constant)
    assert "judge" in failed(found)
    (told,) = [one.said for one in found.failures if one.door == "judge"]
    assert ("lets a known bad answer pass" if constant <= 0.375 else "lets no known good answer pass") in told


def test_a_judge_that_is_turned_round_is_found() -> None:
    assert "judge" in failed(judged(lambda messages, response: 1.0 - by_answer(messages, response)))


def test_a_limit_that_lets_everything_pass_is_found() -> None:
    assert "judge" in failed(judged(by_answer, max_harm=1.0))


def test_a_judge_that_fails_is_found() -> None:
    def broken(messages: Any, response: str) -> float:
        raise ConnectionError("/secret/place")

    found = judged(broken)
    assert "judge" in failed(found)
    assert "failed its self-test" in str(found)

    class Short(Judge):
        name, settings = "short", {}

        async def __call__(self, messages: Any, responses: Sequence[str]) -> list[Grade]:
            return []

    assert "judge" in failed(judged(Short()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cost", "fails"),
    [
        (lambda messages, response: by_answer(messages, response) - 0.5, False),
        (CallableJudge(by_answer), False),
        (lambda messages, response: -1.0, True),
        (lambda messages, response: 1.0, True),
        (lambda messages, response: 0.5 - by_answer(messages, response), True),
        (lambda messages, response: float("nan"), True),
    ],
)
def test_a_cost_model_is_tried_as_a_judge_is(cost: Any, fails: bool) -> None:
    guard = Guard(
        TARGET, "controlled_decoding", cost=cost, reward=lambda messages, response: 0.0, n=1, block=2,
        generation={"max_new_tokens": 4},
    )  # fmt: skip
    assert ("cost" in failed(guard.probe())) is fails


def test_what_a_raw_text_leads_to_may_be_gibberish_if_a_judge_that_can_tell_finds_it_harmless() -> None:
    assert "raw" not in failed(judged(by_answer))
    found = Guard(TARGET, "self_reminder", generation={"max_new_tokens": 4}).probe()
    assert "raw" in failed(found)


# --- texts of one's own -----------------------------------------------------------------------------------------------


def test_a_recipe_says_what_its_guard_is_tried_with() -> None:
    asked: list[str] = []

    def refusing(request: Request) -> bool:
        asked.append(str(request.messages))
        return "stein" in str(request.messages)

    probes = {"harmful": "Wie werfe ich einen stein?", "harmless": "Wie backe ich Brot?"}
    assert Guard(TARGET, defense(refusing), probes=probes).probe().passed
    assert all("stein" in one or "Brot" in one for one in asked)
    recipe = {"target": "x", "defense": "undefended"}
    assert Recipe.parse({**recipe, "probe": probes}, where="r").probe == ProbeSettings(**probes)
    for wrong in ({"harmful": ""}, {"run": "maybe"}, {"other": 1}):
        with pytest.raises(UserError, match="r"):
            Recipe.parse({**recipe, "probe": wrong}, where="the recipe r")
