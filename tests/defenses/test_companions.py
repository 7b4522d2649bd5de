from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from anchorlm.defenses import safe_decoding_step
from anchorlm.defenses._prompting import divide
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.records import Event, TextDelta, UserError

USER = [{"role": "user", "content": "How do I bake bread?"}]
GENERATION = {"max_new_tokens": 10}


def test_the_reminder_is_around_the_last_turn_and_nothing_else(target: LocalEngine) -> None:
    reminded = Guard(target, "self_reminder", generation=GENERATION, template="Be good. {prompt} Be good!")
    plain = Guard(target, "undefended", generation=GENERATION)
    system = {"role": "system", "content": "{prompt}"}
    written = [system, {"role": "user", "content": "Be good. How do I bake bread? Be good!"}]
    assert reminded.chat([system, *USER]).text == plain.chat(written).text
    assert reminded.chat("raw").text == plain.chat("Be good. raw Be good!").text
    with pytest.raises(UserError, match="no place for {prompt}"):
        Guard(target, "self_reminder", template="Be good.")


def test_a_conversation_that_ends_with_the_assistants_turn_is_reminded_all_the_same(target: LocalEngine) -> None:
    reminded = Guard(target, "self_reminder", generation=GENERATION, template="Be good. {prompt} Be good!")
    plain = Guard(target, "undefended", generation=GENERATION)
    begun = {"role": "assistant", "content": "Sure, here is"}
    written = {"role": "user", "content": "Be good. How do I bake bread? Be good!"}
    assert reminded.chat([*USER, begun]).text == plain.chat([written, begun]).text
    assert reminded.chat([*USER, begun]).text != plain.chat([*USER, begun]).text


def pieces(*texts: str) -> list[TextDelta]:
    return [TextDelta(text, (number,)) for number, text in enumerate(texts)]


def test_only_what_follows_the_marker_is_the_final_response() -> None:
    said = pieces("[Internal", " thoughts] To build", " it, mix. [Final", " response]", " No", ", thanks. ")
    assert divide(said) == ("[Internal thoughts] To build it, mix. ", TextDelta("No, thanks.", (4, 5)))


def test_thoughts_that_never_end_are_no_answer() -> None:
    thoughts = "[Internal thoughts] To build it, mix"
    assert divide(pieces(thoughts)) == (thoughts, None)


def test_goal_priority_takes_a_text_without_thoughts_for_the_answer(target: LocalEngine) -> None:
    plain = Guard(target, "undefended", generation=GENERATION)
    thinking = Guard(target, "goal_priority", generation=GENERATION, template="{prompt}")
    assert thinking.chat(USER).text == plain.chat(USER).text
    assert thinking.chat(USER).token_ids == plain.chat(USER).token_ids


@pytest.mark.parametrize("comfort", [0, 1])
def test_best_of_n_gives_the_first_at_ease_or_the_safest_and_is_reproducible(
    target: LocalEngine, comfort: float
) -> None:
    seen: list[str] = []

    def harm(messages: Any, response: str) -> float:
        seen.append(response)
        return len(response) / 1_000

    guard = Guard(target, "best_of_n", judge=CallableJudge(harm), n=6, comfort=comfort, generation=GENERATION)
    response = guard.chat(USER, seed=3)
    assert len(seen) == 6
    assert len(set(seen)) > 1
    assert response.text == (min(seen, key=len) if comfort == 1 else seen[0])
    assert guard.chat(USER, seed=3).text == response.text
    assert response.usage.generated_tokens > response.usage.completion_tokens
    unsafe = Guard(target, "best_of_n", judge=CallableJudge(lambda m, r: 1.0), n=2, refusal="No.")
    assert unsafe.chat(USER, max_new_tokens=3).text == "No."


def naive_safe_decoding(p: list[float], e: list[float], c: int, a: float) -> dict[int, float]:
    """Equations 1 to 3 of the paper with sets."""
    order_p = sorted(range(len(p)), key=lambda i: -p[i])
    order_e = sorted(range(len(e)), key=lambda i: -e[i])
    k = next(k for k in range(1, len(p) + 1) if len(set(order_p[:k]) & set(order_e[:k])) >= min(c, len(p)))
    space = set(order_p[:k]) & set(order_e[:k])
    raw = {i: max(0.0, p[i] + a * (e[i] - p[i])) for i in space}
    total = sum(raw.values())
    return {i: value / total if total else 1 / len(raw) for i, value in raw.items()}


@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0, 4))
def test_a_step_of_safe_decoding_is_the_papers(seed: int, c: int, a: float) -> None:
    p, e = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)
    tokens, mixed = safe_decoding_step(p, e, common=c, strength=a)
    want = naive_safe_decoding(p.tolist(), e.tolist(), c, a)
    assert dict(zip(tokens.tolist(), mixed.tolist(), strict=True)) == pytest.approx(want, abs=1e-4)


def test_safe_decoding_with_the_target_as_its_own_expert_changes_nothing(target: LocalEngine) -> None:
    plain = Guard(target, "undefended", generation=GENERATION)
    guard = Guard(target, "safe_decoding", anchor=LocalEngine(target.model), generation=GENERATION)
    for prompt in (USER, "raw text"):
        assert guard.chat(prompt).token_ids == plain.chat(prompt).token_ids


def test_safe_decoding_is_greedy_for_two_tokens_and_then_the_targets(target: LocalEngine, sibling: LocalEngine) -> None:
    guard = Guard(target, "safe_decoding", anchor=sibling, generation=GENERATION, strength=3)
    response = guard.chat(USER)
    ids = target.model.encode(USER)
    written = list(response.token_ids)

    def p(engine: LocalEngine, extra: list[int], size: int = target.model.vocabulary.size) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = engine.model.model(input_ids=torch.tensor([ids + extra]), use_cache=False).logits[
                0, -1
            ]
        return logits[:size].softmax(-1)

    for step in range(2):
        tokens, mixed = safe_decoding_step(
            p(target, written[:step]), p(sibling, written[:step]), common=5, strength=3
        )  # fmt: skip
        assert written[step] == int(tokens[mixed.argmax()])
    for step in range(2, len(written)):
        assert written[step] == int(p(target, written[:step]).argmax())
    pieces = [event.text for event in guard.stream(USER) if hasattr(event, "text")]
    assert "".join(pieces) == response.text


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_an_expert_that_cannot_read_all_steered_tokens_is_one_sentence_before_any_text(
    target: LocalEngine, left: int
) -> None:
    read = len(target.model.encode(USER))
    short = LocalEngine(tiny_model("llama", seed=7, max_position_embeddings=read + left))
    guard = Guard(target, "safe_decoding", anchor=short, generation=GENERATION)
    events: list[Event] = []
    if left < 2:
        with pytest.raises(UserError, match=rf"The prompt has {read} tokens, but tiny-llama reads {read + left} .*\.$"):
            events.extend(guard.stream(USER))
        assert not events
    else:
        assert guard.chat(USER).finish_reason in ("stop", "length")


def test_safe_decoding_refuses_an_anchor_of_another_vocabulary(target: LocalEngine, anchor: LocalEngine) -> None:
    with pytest.raises(UserError, match="needs one vocabulary.*alignbeam"):
        Guard(target, "safe_decoding", anchor=anchor)


@pytest.mark.parametrize("left", [1, 2, 4, 9])
def test_a_prompt_that_nearly_fills_the_context_is_answered_as_far_as_it_goes(
    target: LocalEngine, sibling: LocalEngine, left: int
) -> None:
    roomy = LocalEngine(tiny_model("gpt_neox", max_position_embeddings=1024))
    judge = CallableJudge(lambda messages, response: 0.0)
    bare = len(target.model.encode([{"role": "user", "content": "!"}])) - 1
    turn = [{"role": "user", "content": "!" * (target.model.context_length - bare - left)}]
    assert len(target.model.encode(turn)) == target.model.context_length - left
    for guard in (
        Guard(target, "undefended"),
        Guard(target, "safe_decoding", anchor=sibling),
        Guard(target, "best_of_n", judge=judge, n=2),
        Guard(target, "alignbeam", anchor=roomy, judge=judge),
    ):
        response = guard.chat(turn)
        assert len(response.token_ids) <= left
        assert (response.finish_reason == "length") == (len(response.token_ids) == left)


@pytest.mark.parametrize(
    "request_",
    ["Bake bread: first", [{"role": "user", "content": "Bake bread"}, {"role": "assistant", "content": "First"}]],
    ids=["raw", "an assistant's turn last"],
)
def test_what_the_client_has_begun_of_an_answer_is_judged_with_it_and_the_worst_counts(
    target: LocalEngine, request_: Any
) -> None:
    read: list[str] = []

    def harm(messages: Any, response: str) -> float:
        read.append(response)
        return 1.0 if "irst" in response else 0.0

    guard = Guard(target, "best_of_n", judge=CallableJudge(harm), n=1, refusal="No.", generation=GENERATION)
    response = guard.chat(request_, raw=isinstance(request_, str))
    assert response.text == "No."
    whole, begun = sorted(read, key=len)
    begun_by_client = request_ if isinstance(request_, str) else "First "
    assert begun == begun_by_client + whole
