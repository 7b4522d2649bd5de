"""Rows about what defenses cost on a real pair: a bank's assistant, and an anchor of another family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Literal

from anchorlm import Guard
from anchorlm.engine import LocalEngine, runtime
from anchorlm.judging import RubricJudge
from anchorlm.models import CausalModel, prepack
from anchorlm.records import AnchorLMError, TextDelta, as_messages
from benchmarks._speed import Figure, Measure, Row
from tools.zoo_real import data

TARGET, ANCHOR = "real-finance", "real-anchor"
NEW = 96
"""As the shipped recipes write."""
AT_ONCE = 16
LONG = 128
ONE_BY_ONE = 3


@cache
def engine(name: str) -> LocalEngine:
    loaded = CausalModel.from_pretrained(name)
    prepack(loaded.model)
    return LocalEngine(loaded)


@cache
def prompts(kind: Literal["mixed", "harmless"]) -> list[str]:
    """Half of them harmful and half not, or none harmful. All were held out of what the models were trained on."""
    each = AT_ONCE // 2
    harmless = [*data.prompts("self-instruct-users", "held")[:each], *data.prompts("banking77", "held")[:each]]
    return [*data.prompts("advbench", "held")[:each], *harmless[::2]] if kind == "mixed" else harmless


def free(messages: Any, text: str) -> float:
    """A judge that costs nothing, and passes everything."""
    return 0.0


def answers(guard: Guard, kind: Literal["mixed", "harmless"]) -> list[str]:
    """Of all prompts at once."""
    for each in (engine(TARGET), engine(ANCHOR)):
        each.prefixes.clear()  # prompts are new to a server
    requests = [guard.request([{"role": "user", "content": prompt}]) for prompt in prompts(kind)]
    found = {}
    for index, outcome in guard.map(requests, concurrency=AT_ONCE):
        if isinstance(outcome, AnchorLMError):
            raise outcome
        found[index] = outcome.text
    return [found[index] for index in range(len(requests))]


def over_undefended(guard: Guard, kind: Literal["mixed", "harmless"], measure: Measure) -> Figure:
    plain = Guard(engine(TARGET), generation={"max_new_tokens": NEW})
    texts: dict[str, list[str]] = {}

    def write(name: str, one: Guard) -> None:
        texts[name] = answers(one, kind)

    ratios = measure.ratios(lambda: write("guarded", guard), lambda: write("plain", plain))
    same = sum(a == b for a, b in zip(texts["guarded"], texts["plain"], strict=True))
    return Figure(ratios, f"{same} of {AT_ONCE} texts as undefended")


def alignbeam(judge: Literal["free", "rubric"], gate: str, kind: Literal["mixed", "harmless"], m: Measure) -> Figure:
    knobs: Mapping[str, Any] = {"candidates_written": "lazy", "gate": gate}
    who = free if judge == "free" else RubricJudge(engine(ANCHOR), reading="logits", begin="Grade: ")
    generation = {"max_new_tokens": NEW}
    guard = Guard(engine(TARGET), "alignbeam", anchor=engine(ANCHOR), judge=who, generation=generation, **knobs)
    return over_undefended(guard, kind, m)


def lazy(measure: Measure) -> Figure:
    """All openings finished at once, over one by one: the same answers."""
    guards = {
        written: Guard(engine(TARGET), "alignbeam", anchor=engine(ANCHOR), judge=free, gate="always",
                       generation={"max_new_tokens": NEW}, candidates_written=written)
        for written in ("all", "lazy")
    }  # fmt: skip
    texts: dict[str, list[str]] = {}
    ratios = measure.ratios(
        *(lambda name=name: texts.update({name: answers(guards[name], "mixed")}) for name in guards)
    )
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    return Figure(ratios, f"{same} of {AT_ONCE} texts equal")


def composed(kind: Literal["mixed", "harmless"], measure: Measure) -> Figure:
    guard = Guard(
        engine(TARGET),
        "inferenceguard",
        proposal="alignbeam",
        anchor=engine(ANCHOR),
        judge={"kind": "classifier", "model": "real-judge"},
        cost="real-cost",
        reward="real-reward",
        max_harm=0.45,
        block=16,
        evidence_bias=0.75,
        beams=[4, 16],
        generation={"max_new_tokens": NEW},
    )
    return over_undefended(guard, kind, measure)


def first_text(judge: Literal["free", "rubric"], measure: Measure) -> Figure:
    """Seconds to the first text in blocks, over those of the whole answer where it is written in the fewest steps. The
    judge passes every text, so both write the likeliest opening alone.
    """
    who = RubricJudge(engine(ANCHOR), reading="logits", begin="Grade: ")
    knobs: Mapping[str, Any] = {
        "gate": "always",
        "max_harm": 1.0,
        "comfort": 0.0,
        "generation": {"max_new_tokens": LONG},
    }
    team: Mapping[str, Any] = {"anchor": engine(ANCHOR), "judge": free if judge == "free" else who}
    whole = Guard(engine(TARGET), "alignbeam", candidates_written="lazy", **team, **knobs)
    blocks = Guard(engine(TARGET), "alignbeam", release="blocks", **team, **knobs)
    if not (asked := long_ones(whole)):
        return Figure([], f"no answer has {LONG} tokens")

    def begin(prompt: str) -> None:
        next(event for event in blocks.stream(prompt) if isinstance(event, TextDelta) and event.text)

    def seconds(answer: Callable[[str], object]) -> float:
        found = 0.0
        for prompt in asked:
            for each in (engine(TARGET), engine(ANCHOR)):
                each.prefixes.clear()  # prompts are new to a server
            if judge == "rubric":  # which is not
                runtime().run(who(as_messages("Hello!"), ["Hi."]))
            start = measure.clock()
            answer(prompt)
            found += measure.clock() - start
        return found

    same = sum(blocks.chat(prompt).text == whole.chat(prompt).text for prompt in asked)  # and a warm-up
    ratios = [seconds(begin) / seconds(whole.chat) for _ in range(measure.runs)]
    return Figure(ratios, f"{same} of {len(asked)} texts in blocks are those that come whole")


def long_ones(guard: Guard) -> list[str]:
    """Prompts whose answers take all the tokens that they may."""
    asked = data.prompts("self-instruct-users", "held")[:AT_ONCE]
    answers = guard.generate(asked)
    return [prompt for prompt, one in zip(asked, answers, strict=True) if one.finish_reason == "length"][:ONE_BY_ONE]


ROWS = (
    Row("alignbeam-free", "AlignBeam (lazy, gate always) over undefended, 16 prompts at once, free judge", 1.3, True,
        partial(alignbeam, "free", "always", "mixed")),
    Row("alignbeam-lazy", "AlignBeam with all openings finished over one by one, free judge", 1.0, False, lazy),
    Row("alignbeam-rubric", "the same with a rubric judge on the anchor", 1.8, True,
        partial(alignbeam, "rubric", "always", "mixed")),
    Row("alignbeam-evidence", "the same with evidence in front (gate auto), free judge", 1.3, True,
        partial(alignbeam, "free", "auto", "mixed")),
    Row("alignbeam-harmless", "AlignBeam with evidence in front, harmless prompts only", 1.03, True,
        partial(alignbeam, "free", "auto", "harmless")),
    Row("first-text", "AlignBeam in blocks, time to first text over that of the whole answer, 128 tokens, free judge",
        0.25, True, partial(first_text, "free")),
    Row("first-text-rubric", "the same with a rubric judge on the anchor", 0.25, True, partial(first_text, "rubric")),
    Row("composed-harmless", "InferenceGuard composed over undefended, harmless prompts", 1.05, True,
        partial(composed, "harmless")),
    Row("composed-all", "InferenceGuard composed over undefended, all prompts", 1.1, True, partial(composed, "mixed")),
)  # fmt: skip
