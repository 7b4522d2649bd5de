"""AlignBeam with a side on another server: as with the same weights here, but for what the server does not name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import Endpoint, readable
from factories import tiny_model, tiny_tokenizer

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.models import CausalModel
from anchorlm.records import Response, UserError

PROMPTS = ["How do I bake bread?", "Ünïcode, 12 + 30 = ?", "The lazy dog", "x"]
LENIENT = CallableJudge(lambda messages, response: 0.0, name="lenient")
EVERY = 400
"""More tokens than there are."""


class Cut:
    """An engine that names the likeliest tokens alone, as a server does."""

    def __init__(self, engine: LocalEngine, top: int) -> None:
        self._engine = engine
        self._top = top

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @asynccontextmanager
    async def open(self, ids: Sequence[int], **options: int) -> AsyncIterator[Any]:
        async with self._engine.open(ids, **options) as sequence:
            yield _CutSequence(sequence, self._top)


class _CutSequence:
    def __init__(self, sequence: Any, top: int) -> None:
        self._sequence = sequence
        self._top = top

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sequence, name)

    def fork(self) -> _CutSequence:
        return _CutSequence(self._sequence.fork(), self._top)

    async def logits(self) -> torch.Tensor:
        whole = (await self._sequence.logits()).log_softmax(-1)
        best = whole.topk(self._top)
        return torch.full_like(whole, -torch.inf).scatter(0, best.indices, best.values)


@pytest.fixture(scope="module")
def models() -> dict[str, CausalModel]:
    anchor = tiny_model("qwen2", tokenizer=_other(), seed=1)
    return {"target": readable(tiny_model("llama")), "anchor": readable(anchor)}


def _other() -> Any:
    return tiny_tokenizer(290, text="A cat sat on the mat. The weather is fine today, isn't it?\n")


@pytest.fixture(scope="module")
def folders(models: dict[str, CausalModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    places: dict[str, Path] = {role: tmp_path_factory.mktemp(role) for role in models}
    for role, place in places.items():
        models[role].tokenizer.save_pretrained(place)
    return {role: str(place) for role, place in places.items()}


@pytest.fixture(scope="module")
def far(models: dict[str, CausalModel], folders: dict[str, str]) -> Iterator[Callable[..., dict[str, Any]]]:
    started: list[Endpoint] = []

    def start(role: str, top: int, **options: Any) -> dict[str, Any]:
        started.append(Endpoint(models[role], **options))
        return {"endpoint": started[-1].url, "tokenizer": folders[role], "top_logprobs": top}

    yield start
    for endpoint in started:
        endpoint.stop()


def answers(target: Any, anchor: Any, **knobs: Any) -> list[Response]:
    options = {"judge": LENIENT, "generation": {"max_new_tokens": 10}, **knobs}
    return Guard(target, "alignbeam", anchor=anchor, **options).generate(PROMPTS)


def told(responses: Sequence[Response]) -> list[list[tuple[str, float]]]:
    return [
        [(one["text"], round(one["log_probability"], 3)) for one in decision.data["candidates"]]
        for response in responses
        for decision in response.trace
        if decision.kind == "candidates"
    ]


def steps(responses: Sequence[Response]) -> list[dict[str, Any]]:
    mixed = [one for response in responses for one in response.trace if one.kind == "mix"]
    return [step for one in mixed for step in one.data["steps"]]


@pytest.mark.parametrize("sides", [("target",), ("anchor",), ("target", "anchor")], ids="+".join)
@pytest.mark.parametrize("way", [{}, {"form": "ids", "owner": "vllm"}], ids=str)
def test_a_server_that_names_every_token_gives_the_candidates_of_the_same_weights_here(
    sides: tuple[str, ...], way: dict[str, Any], models: dict[str, CausalModel], far: Callable[..., dict[str, Any]]
) -> None:
    here = {role: LocalEngine(model) for role, model in models.items()}
    there = here | {role: far(role, EVERY, **way) for role in sides}
    assert told(answers(**there)) == told(answers(**here))


def test_a_server_that_names_some_gives_what_the_same_cut_gives_here(
    models: dict[str, CausalModel], far: Callable[..., dict[str, Any]]
) -> None:
    here = {role: Cut(LocalEngine(model), 20) for role, model in models.items()}
    found = answers(far("target", 20), far("anchor", 20))
    assert told(found) == told(answers(**here))
    assert all(0 < step["unnamed"] < 1 for step in steps(found))


def test_what_neither_side_names_bounds_how_far_the_mixture_is_off(
    models: dict[str, CausalModel], far: Callable[..., dict[str, Any]]
) -> None:
    knobs = {"candidates": 1, "mixed_tokens": 1, "trace_top": EVERY}
    whole = steps(answers(*(LocalEngine(models[role]) for role in ("target", "anchor")), **knobs))
    cut = steps(answers(far("target", 30), far("anchor", 30), **knobs))
    for full, some in zip(whole, cut, strict=True):
        exact, seen = dict(full["mixture"]), dict(some["mixture"])
        distance = sum(abs(exact.get(token, 0.0) - seen.get(token, 0.0)) for token in {*exact, *seen}) / 2
        assert distance <= some["unnamed"] + 0.01  # the trace rounds


def test_the_server_writes_the_conversation_where_it_can_continue_an_answer(
    models: dict[str, CausalModel], far: Callable[..., dict[str, Any]]
) -> None:
    way = {"completions": False, "continues": "flags", "owner": "vllm"}
    source = far("target", EVERY, **way)
    here = {role: LocalEngine(model) for role, model in models.items()}
    found = answers(source, here["anchor"], candidates=1)
    assert all(response.text for response in found)
    assert not any(response.failed for response in found)


def test_a_server_that_cannot_continue_an_answer_is_told(
    models: dict[str, CausalModel], far: Callable[..., dict[str, Any]]
) -> None:
    source = far("target", EVERY, completions=False, continues="no")
    with pytest.raises(UserError, match="cannot continue an answer, so load the model here"):
        answers(source, LocalEngine(models["anchor"]))


def test_an_endpoint_without_a_tokenizer_is_told(
    models: dict[str, CausalModel], far: Callable[..., dict[str, Any]]
) -> None:
    source = far("target", 20)
    del source["tokenizer"]
    with pytest.raises(UserError, match="give the tokenizer of"):
        answers(source, LocalEngine(models["anchor"]))
