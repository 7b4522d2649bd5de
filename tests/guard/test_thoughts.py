from __future__ import annotations

from typing import Any

import pytest
from factories import tiny_model, tiny_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import HARMONY, OPEN, QWEN, rewrite, thinker

from anchorlm.defenses import Defense
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge, CallableScorer
from anchorlm.records import Decision, Finished, TextDelta, ThoughtDelta, UserError

OPENED = thinker("The fox asks.\n</think>\n\nHow do I bake bread?")
OPENS = thinker("<think>\nThe fox asks.\n</think>\n\nHow do I bake bread?", QWEN)
CHANNELS = thinker(
    "<|channel|>analysis<|message|>The fox asks.<|end|><|start|>assistant<|channel|>final<|message|>"
    "How do I bake bread?",
    HARMONY,
)
ENDLESS = thinker("The quick brown fox " * 20)
PLAIN = thinker("How do I bake bread?", QWEN)
THINKERS = {"the prompt opens": OPENED, "the model opens": OPENS, "channels": CHANNELS}
THOUGHT, ANSWER = "The fox asks.", "How do I bake bread?"
LONG = {"max_new_tokens": 40}


def guard(model: Any, policy: Any = "hide", defense: Any = "undefended", **options: Any) -> Guard:
    return Guard(LocalEngine(model), defense, thoughts=policy, generation=LONG, **options)


@pytest.mark.parametrize("name", THINKERS)
def test_a_hidden_thought_leaves_nothing_but_its_count(name: str) -> None:
    events = list(guard(THINKERS[name]).stream("hi"))
    assert not any(isinstance(event, ThoughtDelta) for event in events)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == ANSWER
    assert "fox" not in repr(events)
    usage = events[-1].usage if isinstance(events[-1], Finished) else None
    assert usage is not None
    assert 0 < usage.reasoning_tokens < usage.completion_tokens


@pytest.mark.parametrize("name", THINKERS)
def test_a_shown_thought_comes_apart_from_its_answer_and_streamed_as_whole(name: str) -> None:
    shows = guard(THINKERS[name], "show")
    whole = shows.chat("hi")
    assert (whole.thought, whole.text) == (THOUGHT, ANSWER)
    events = list(shows.stream("hi"))
    assert "".join(event.text for event in events if isinstance(event, ThoughtDelta)) == THOUGHT
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == ANSWER
    kinds = [type(event) for event in events if isinstance(event, ThoughtDelta | TextDelta)]
    assert kinds == sorted(kinds, key=lambda kind: kind is TextDelta)


def test_a_thought_that_never_ends_is_the_refusal() -> None:
    for policy in ("hide", "show"):
        response = guard(ENDLESS, {"policy": policy, "budget": 20}).chat("hi")
        assert response.finish_reason == "refusal"
        assert response.text == "I'm sorry, but I can't help with that."
    assert any("did not end within 20 tokens" in str(one.data) for one in response.trace)


def test_a_model_without_a_thought_answers_as_before() -> None:
    response = guard(PLAIN, "show").chat("hi")
    assert (response.thought, response.text) == (None, ANSWER)
    assert response.usage.reasoning_tokens == 0
    assert response.usage.completion_tokens == len(response.token_ids)


def test_switched_off_the_prompt_ends_behind_an_empty_thought() -> None:
    model = tiny_model(tokenizer=tiny_tokenizer(chat_template=OPEN))
    asked = [{"role": "user", "content": "hi"}]
    assert model.tokenizer.decode(model.encode(asked)).endswith("<think>\n")
    assert model.tokenizer.decode(model.encode(asked, closed=True)).endswith("<think>\n\n</think>\n\n")
    harmony = tiny_model(tokenizer=tiny_tokenizer(chat_template=HARMONY))
    assert harmony.tokenizer.decode(harmony.encode(asked, closed=True)).endswith("<|channel|>final<|message|>")
    usage = guard(model, "off").chat("hi", max_new_tokens=4).usage
    assert usage.reasoning_tokens == 0


def test_a_request_may_switch_thoughts_off_by_the_templates_own_variable() -> None:
    events = list(guard(OPENED).stream("hi", template={"enable_thinking": False}))
    assert not any(isinstance(event, Decision) and event.kind == "thought" for event in events)
    with pytest.raises(UserError, match="messages is given to the template by AnchorLM"):
        guard(OPENED).chat("hi", template={"messages": []})


@pytest.mark.parametrize("policy", ["sometimes", {"policy": "hide", "budget": 0}, {"colour": "red"}])
def test_a_policy_that_does_not_exist_is_a_sentence(policy: Any) -> None:
    with pytest.raises(UserError, match="thoughts"):
        guard(PLAIN, policy)


WORDS = ("fox", "dog", "bread", "quick", "lazy")
pieces = st.lists(st.sampled_from([*WORDS, " ", "\n", "<think>", "</think>\n\n"]), max_size=12)
"""The white space behind an end is the template's, and stands there whatever a model writes."""


def reference(written: list[str], *, inside: bool) -> tuple[str | None, str | None]:
    """Thought and answer of a text: a thought ends once, and another mark ends the answer."""
    text = "".join(written)
    if not inside:
        if not text.lstrip().startswith("<think>"):
            return None, text.partition("</think>")[0].partition("<think>")[0]
        text = text.lstrip().removeprefix("<think>")
    thought, closed, answer = text.partition("</think>")
    if not closed:
        return thought.strip(), None
    return thought.strip(), answer.partition("</think>")[0].partition("<think>")[0].lstrip()


BOTH = {inside: LocalEngine(thinker("", OPEN if inside else QWEN, positions=128)) for inside in (True, False)}


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(pieces, st.booleans())
def test_hidden_thoughts_never_leak_whatever_a_model_writes(written: list[str], inside: bool) -> None:
    engine = BOTH[inside]
    rewrite(engine.model, len(engine.model.encode([{"role": "user", "content": "hi"}])), written)
    thought, answer = reference(written, inside=inside)
    hidden = Guard(engine, thoughts="hide", generation=LONG)
    shown = Guard(engine, thoughts="show", generation=LONG).chat("hi")
    text = hidden.chat("hi").text
    assert "".join(event.text for event in hidden.stream("hi") if isinstance(event, TextDelta)) == text
    assert "think>" not in text
    if answer is None:
        assert text == "I'm sorry, but I can't help with that."
    else:
        assert text.strip() == answer.strip()
        assert (shown.thought or "") == (thought or "")


def judged(model: Any, policy: Any, defense: str, **options: Any) -> tuple[Any, list[str]]:
    seen: list[str] = []

    def judge(messages: Any, response: str) -> float:
        seen.append(response)
        return 0.0

    kinds: dict[str, Any] = {"judge": CallableJudge(judge)}
    if defense == "alignbeam":
        kinds["anchor"] = LocalEngine(tiny_model(tokenizer=tiny_tokenizer(chat_template=OPEN)))
    if defense == "inferenceguard":
        kinds |= {"cost": CallableScorer(lambda messages, response: -1.0),
                  "reward": CallableScorer(lambda messages, response: 1.0)}  # fmt: skip
    return guard(model, policy, defense, **kinds, **options).chat("hi"), seen


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["alignbeam", "best_of_n", "inferenceguard"])
@pytest.mark.parametrize("name", THINKERS)
def test_a_defense_acts_on_the_answer_and_its_judge_sees_the_thought_marked(defense: str, name: str) -> None:
    response, seen = judged(THINKERS[name], "show", defense)
    assert response.thought == THOUGHT
    assert response.text.endswith("bake bread?")
    assert "fox" not in response.text
    assert seen
    assert all(one.startswith(f"<think>\n{THOUGHT}\n</think>\n\n") for one in seen)
    response, seen = judged(THINKERS[name], {"policy": "hide", "judged": False}, defense)
    assert response.thought is None
    assert seen
    assert not any("fox" in one for one in seen)


def test_harm_that_is_planned_in_a_hidden_thought_is_seen_by_the_judge() -> None:
    judge = CallableJudge(lambda messages, response: 1.0 if "fox" in response else 0.0)
    for policy, reason in (("hide", "refusal"), ({"policy": "hide", "judged": False}, "stop")):
        response = guard(OPENED, policy, "best_of_n", judge=judge, n=2).chat("hi")
        assert response.finish_reason == reason
    refused = guard(OPENED, "show", "best_of_n", judge=judge, n=2).chat("hi")
    assert (refused.finish_reason, refused.thought) == ("refusal", None)


def test_the_gate_of_inferenceguard_rates_the_thought_as_well() -> None:
    cost = CallableScorer(lambda messages, response: 1.0 if "fox" in response else -1.0)
    kinds = {"cost": cost, "reward": CallableScorer(lambda messages, response: 1.0)}
    response = guard(OPENED, "hide", "inferenceguard", **kinds).chat("hi")
    assert response.finish_reason == "refusal"
    assert any("the thought costs" in str(one.data) for one in response.trace)


@pytest.mark.parametrize("name", ["self_reminder", "goal_priority"])
def test_other_defenses_know_where_the_answer_begins(name: str) -> None:
    events = list(guard(thinker("a\n</think>\n\nb"), "show", name).stream("hi"))
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert "</think>" not in said


def test_the_thought_of_a_defense_that_knows_of_none_is_parted_from_its_answer() -> None:
    class Old(Defense):
        """As plug-ins were written before there were thoughts."""

        name = "old"

        async def respond(self, request: Any) -> Any:
            from anchorlm.defenses import stream_target

            ids = self.target.model.encode(request.prompt)
            async with self.target.open(ids, room=40) as row:
                async for event in stream_target(row, self.target, request.generation):
                    yield event

    for model in (OPENED, OPENS):
        assert guard(model, "hide", Old).chat("hi").text == ANSWER
        assert guard(model, "show", Old).chat("hi").thought == THOUGHT
    assert guard(ENDLESS, "hide", Old).chat("hi").finish_reason == "refusal"
