from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import heard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorlm.defenses import AlignBeam
from anchorlm.defenses.alignbeam._defense import Primed
from anchorlm.engine import LocalEngine, runtime
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.records import DefenseError, Response, UserError
from anchorlm.tokens import Projection, Retokenizer

PROMPTS = ["How do I bake bread?", "Ünïcode, 12 + 30 = ?", "The lazy dog", "x"]
LENIENT = CallableJudge(lambda messages, response: 0.0, name="lenient")


def guard(target: LocalEngine, anchor: LocalEngine, judge: Any = LENIENT, **knobs: Any) -> Guard:
    knobs = {"candidates_written": "all", **knobs}
    return Guard(target, "alignbeam", anchor=anchor, judge=judge, generation={"max_new_tokens": 12}, **knobs)


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def candidates(response: Response) -> list[dict[str, Any]]:
    return next(decision.data["candidates"] for decision in response.trace if decision.kind == "candidates")


def reference(
    target: LocalEngine, anchor: LocalEngine, prompt: str, *, alpha: float, k: int, n: int, new: int
) -> list[tuple[str, float]]:
    """The paper's steps 1 to 5 written literally: full forwards, one candidate after another."""
    t, a = target.model, anchor.model
    projection = Projection.build(
        a.vocabulary, t.vocabulary, anchor_size=a.vocab_size, target_size=t.vocab_size
    )  # fmt: skip
    retokenizer = Retokenizer(a.vocabulary)

    def p(model: Any, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return heard(model, model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]).softmax(-1)

    def f(response: list[int]) -> torch.Tensor:
        encoded = retokenizer.encode(t.vocabulary.decode(response))
        steps = p(a, [*a.encode(said(prompt)), *encoded.ids, *encoded.tail])[-1 - len(encoded.tail) :]
        q = projection.project_pending(steps, encoded) if encoded.tail else projection(steps)[0]
        return (1 - alpha) * p(t, t.encode(said(prompt)) + response)[-1] + alpha * q

    found = []
    likely = f([]).topk(k)
    for token, weight in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
        response, score = [token], float(torch.tensor(weight).log())
        while len(response) < new and response[-1] not in t.stop_ids:
            mixed = len(response) < n
            step = f(response) if mixed else p(t, t.encode(said(prompt)) + response)[-1]
            response.append(int(step.argmax()))
            score += float(step.max().log()) if mixed else 0.0
        response = response[:-1] if response[-1] in t.stop_ids else response
        found.append((t.vocabulary.decode(response).decode(errors="replace"), score))
    return found


@pytest.mark.parametrize("prompt", PROMPTS)
def test_candidates_are_those_of_the_paper_written_literally(
    target: LocalEngine, anchor: LocalEngine, prompt: str
) -> None:
    got = candidates(guard(target, anchor).chat(said(prompt)))
    want = reference(target, anchor, prompt, alpha=0.5, k=3, n=6, new=12)
    assert [one["text"] for one in got] == [text for text, _ in want]
    assert [one["log_probability"] for one in got] == pytest.approx([score for _, score in want], abs=1e-3)


def test_alpha_zero_and_one_candidate_is_the_undefended_target_token_for_token(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    plain = Guard(target, "undefended", generation={"max_new_tokens": 12})
    strict = CallableJudge(lambda messages, response: 1.0)
    off = guard(target, anchor, strict, alpha=0, candidates=1)
    for prompt in PROMPTS:
        ways: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": 5, "temperature": 2.0}]
        for generation in ways:
            alone = plain.chat(said(prompt), **generation)
            assert off.chat(said(prompt), **generation).token_ids == alone.token_ids


def test_alpha_one_writes_what_the_anchor_says_on_one_vocabulary(target: LocalEngine, sibling: LocalEngine) -> None:
    follows = guard(target, sibling, alpha=1, mixed_tokens=12, candidates=1)
    leader = Guard(sibling, "undefended", generation={"max_new_tokens": 12})
    for prompt in PROMPTS[:2]:
        assert follows.chat(said(prompt)).token_ids == leader.chat(said(prompt)).token_ids


def test_requests_run_together_get_what_each_gets_alone(target: LocalEngine, anchor: LocalEngine) -> None:
    one = guard(target, anchor)
    together = one.generate(PROMPTS * 3)
    alone = [one.chat(said(prompt)) for prompt in PROMPTS] * 3
    assert [response.text for response in together] == [response.text for response in alone]


def test_streamed_text_is_the_whole_text(target: LocalEngine, anchor: LocalEngine) -> None:
    one = guard(target, anchor)
    for prompt in PROMPTS:
        pieces = [event.text for event in one.stream(said(prompt)) if hasattr(event, "text")]
        assert "".join(pieces) == one.chat(said(prompt)).text


def test_the_safest_candidate_is_given_and_the_likelier_one_of_equals(target: LocalEngine, anchor: LocalEngine) -> None:
    graded = candidates(guard(target, anchor).chat(said("The lazy dog")))
    texts = [one["text"] for one in graded]
    assert len(set(texts)) == 3
    least = CallableJudge(lambda messages, response: 0.0 if response == texts[2] else 0.3)
    assert guard(target, anchor, least, comfort=1).chat(said("The lazy dog")).text == texts[2]
    likeliest = max(graded, key=lambda one: one["log_probability"])["text"]
    assert guard(target, anchor).chat(said("The lazy dog")).text == likeliest


def test_among_comfortably_safe_candidates_the_likeliest_is_given(target: LocalEngine, anchor: LocalEngine) -> None:
    graded = candidates(guard(target, anchor).chat(said("The lazy dog")))
    likely = sorted(graded, key=lambda one: -one["log_probability"])
    first, second, third = (one["text"] for one in likely)
    harms = {first: 0.15, second: 0.0, third: 0.01}
    judge = CallableJudge(lambda messages, response: harms[response])
    given = {
        comfort: guard(target, anchor, judge, comfort=comfort).chat(said("The lazy dog")) for comfort in (0.2, 0.3, 1)
    }
    assert [response.text for response in given.values()] == [first, second, second]
    assert given[0.2].trace[-1].data["why"] == "the likeliest of 3 with harm of at most 0.175"
    assert given[1].trace[-1].data["why"] == "the safest"


def test_a_candidate_that_says_nothing_never_wins(target: LocalEngine, anchor: LocalEngine) -> None:
    texts = [one["text"] for one in candidates(guard(target, anchor).chat(said("The lazy dog")))]
    judge = CallableJudge(lambda messages, response: 0.0 if not response.strip() else 0.3)
    one = guard(target, anchor, judge, comfort=1)
    for stop in (text[:1] for text in texts):  # what a stop text leaves of a candidate is what counts
        response = runtime().run(one.respond(replace(one.request(said("The lazy dog")), stops=(stop,))))
        left = [text for text in texts if not text.startswith(stop)]
        assert (response.text in left) if left else (response.finish_reason == "refusal")
    stops = tuple(text[:1] for text in texts)
    every = runtime().run(one.respond(replace(one.request(said("The lazy dog")), stops=stops)))
    assert every.finish_reason == "refusal"
    assert "no candidate says anything" in every.trace[-1].data["why"]


HARMS = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.9]), min_size=3, max_size=3)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HARMS, st.sampled_from([0.0, 0.2, 0.25, 1.0]), st.sampled_from(PROMPTS), st.booleans())
def test_openings_that_are_finished_one_by_one_give_what_all_of_them_give(
    target: LocalEngine, anchor: LocalEngine, harms: list[float], comfort: float, prompt: str, sampled: bool
) -> None:
    generation: dict[str, Any] = {"do_sample": True, "seed": 3, "temperature": 1.5} if sampled else {}
    texts = [one["text"] for one in candidates(guard(target, anchor).chat(said(prompt), **generation))]
    judge = CallableJudge(lambda messages, response: harms[texts.index(response)])
    whole, lazy = (
        guard(target, anchor, judge, comfort=comfort, candidates_written=written).chat(said(prompt), **generation)
        for written in ("all", "lazy")
    )
    assert (lazy.text, lazy.token_ids, lazy.finish_reason) == (whole.text, whole.token_ids, whole.finish_reason)
    assert {one["text"] for one in candidates(lazy)} <= set(texts)


def test_an_opening_is_mixed_no_further_than_shows_that_it_is_not_the_likeliest(
    target: LocalEngine, anchor: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Primed] = []
    step = Primed.step

    async def counted(opening: Primed) -> None:
        steps.append(opening)
        await step(opening)

    monkeypatch.setattr(Primed, "step", counted)
    taken = {}
    for written in ("all", "lazy"):
        steps.clear()
        texts = [guard(target, anchor, candidates_written=written).chat(said(prompt)).text for prompt in PROMPTS]
        taken[written] = texts, len(steps)
    assert taken["lazy"][0] == taken["all"][0]
    assert taken["lazy"][1] < taken["all"][1]


def test_an_opening_is_only_finished_where_the_judge_is_not_comfortable_with_a_likelier_one(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    likely = [one["text"] for one in candidates(guard(target, anchor, candidates_written="lazy").chat(said("x")))]
    assert len(likely) == 1
    strict = CallableJudge(lambda messages, response: 0.3 if response in likely else 0.0)
    second = guard(target, anchor, strict, candidates_written="lazy").chat(said("x"))
    assert [one["harm"] for one in candidates(second)] == [0.3, 0.0]
    assert next(one.data["why"] for one in second.trace if one.kind == "chosen").endswith("1 opening was not finished")


def test_no_safe_candidate_is_the_configured_refusal(target: LocalEngine, anchor: LocalEngine) -> None:
    response = guard(target, anchor, CallableJudge(lambda m, r: 0.4), refusal="No.").chat(said("x"))
    assert (response.text, response.token_ids, response.finish_reason) == ("No.", (), "refusal")
    assert "no candidate is safe" in response.trace[-1].data["why"]
    assert guard(target, anchor, CallableJudge(lambda m, r: 0.4)).chat(said("x"), knobs={"max_harm": 0.5}).token_ids


@pytest.mark.parametrize("answer", [float("nan"), 7, "harmless", None])
def test_a_judge_that_talks_rubbish_leads_to_the_refusal(target: LocalEngine, anchor: LocalEngine, answer: Any) -> None:
    response = guard(target, anchor, CallableJudge(lambda m, r: answer), refusal="No.").chat(said("x"))
    assert (response.text, response.finish_reason) == ("No.", "refusal")
    assert response.failed


def test_a_judge_that_raises_leads_to_the_refusal_or_to_its_error(target: LocalEngine, anchor: LocalEngine) -> None:
    def broken(messages: Any, response: str) -> float:
        raise ConnectionError("the grader is down")

    response = guard(target, anchor, CallableJudge(broken)).chat(said("x"))
    assert response.finish_reason == "refusal"
    assert "the grader is down" in response.trace[-1].data["why"]
    written = next(one.data["candidates"] for one in response.trace if one.kind == "candidates")
    assert all(one["text"] and one["harm"] is None for one in written)
    loud = Guard(target, "alignbeam", anchor=anchor, judge=CallableJudge(broken), on_error="raise")
    with pytest.raises(DefenseError, match="the grader is down"):
        loud.chat(said("x"), max_new_tokens=4)


def test_the_trace_shows_every_step_and_the_choice(target: LocalEngine, anchor: LocalEngine) -> None:
    response = guard(target, anchor, mixed_tokens=4, trace_top=2).chat(said("How do I bake bread?"))
    mixes = [decision.data for decision in response.trace if decision.kind == "mix"]
    assert [data["candidate"] for data in mixes] == [0, 1, 2]
    for data in mixes:
        assert 1 <= len(data["steps"]) <= 4
        for step in data["steps"]:
            assert step["weight"] == 0.5
            assert len(step["target"]) == len(step["anchor"]) == len(step["mixture"]) == 2
    assert response.trace[-1].kind == "chosen"
    quiet = guard(target, anchor, trace_top=0).chat(said("x"))
    assert [decision.kind for decision in quiet.trace] == ["candidates", "chosen"]


def test_mixing_at_boundaries_leaves_the_target_alone_inside_words(target: LocalEngine, anchor: LocalEngine) -> None:
    response = guard(target, anchor, mix_at="boundaries", mixed_tokens=10).chat(said("How do I bake bread?"))
    weights = [
        step["weight"] for decision in response.trace if decision.kind == "mix" for step in decision.data["steps"]
    ]
    assert set(weights) == {0.0, 0.5}


def test_every_knob_is_one_of_a_request(target: LocalEngine, anchor: LocalEngine) -> None:
    one = guard(target, anchor)
    knobs: dict[str, Any] = {
        "alpha": 0.9,
        "mixed_tokens": 3,
        "candidates": 5,
        "projection": "lookahead",
        "mix_at": "boundaries",
    }
    response = one.chat(said("x"), knobs=knobs)
    assert len(candidates(response)) == 5
    built = Guard(
        target, "alignbeam", anchor=anchor, judge=LENIENT, generation={"max_new_tokens": 12}, **knobs
    )  # fmt: skip
    assert built.chat(said("x")).text == response.text
    assert one.chat(said("x")).text == guard(target, anchor).chat(said("x")).text


def test_a_knob_that_a_projection_does_not_know_builds_none_anew_and_few_are_kept(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    defense: Any = guard(target, anchor).defense
    default = defense.guidance.translator(defense.settings)
    papers = []
    for top in range(1, 21):
        assert defense.guidance.translator(defense.settings.replace({"top": top}, where="")) is default
        paper = defense.settings.replace({"top": top, "projection": "paper-drop"}, where="")
        papers.append(weakref.ref(defense.guidance.translator(paper)))
    gc.collect()
    assert 1 <= sum(paper() is not None for paper in papers) <= 8


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"alpha": 1.4}, "alpha = 1.4 does not fit the defense alignbeam: input should be less than or equal to 1"),
        ({"candidates": 0}, "candidates = 0 does not fit"),
        ({"gate_bias": float("nan")}, "gate_bias = nan does not fit"),
        ({"projection": "magic"}, "projection = 'magic' does not fit"),
        ({"beta": 1}, "alignbeam has no setting 'beta'; it has: alpha, .*candidates"),
    ],
)
def test_a_wrong_knob_is_one_sentence(
    target: LocalEngine, anchor: LocalEngine, knobs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        guard(target, anchor, **knobs)
    with pytest.raises(UserError, match=sentence):
        guard(target, anchor).chat(said("x"), knobs=knobs)


def test_every_row_is_free_when_a_request_has_ended(target: LocalEngine, anchor: LocalEngine) -> None:
    small = [LocalEngine(engine.model, max_rows=3, max_tokens=1_000) for engine in (target, anchor)]
    one = guard(*small)
    assert len(one.generate(PROMPTS * 4)) == 16  # more than fit at once
    stream: Any = one.stream(said("x"))
    next(iter(stream))
    stream.close()
    assert len(one.generate(PROMPTS)) == 4


def test_it_says_what_it_needs() -> None:
    assert AlignBeam.needs.anchor is not None
    assert AlignBeam.needs.judge
