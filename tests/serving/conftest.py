from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from factories import tiny_model
from serving.servers import LIMITS, Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.serving import ModelServing, ServedModel


@pytest.fixture(scope="session")
def target() -> LocalEngine:
    return LocalEngine(tiny_model("llama"))


@pytest.fixture(scope="session")
def make_guard(target: LocalEngine) -> Callable[..., Guard]:
    """An AlignBeam guard around the shared target, under any judge."""

    def make(judge: Callable[..., Any] = lambda messages, response: 0.0, **options: Any) -> Guard:
        options = {"mixed_tokens": 2, "candidates": 2, "candidates_written": "all", **options}
        generation = {"max_new_tokens": options.pop("max_new_tokens", 12)}
        return Guard(target, "alignbeam", anchor=target, judge=CallableJudge(judge), generation=generation, **options)

    return make


@pytest.fixture(scope="session")
def plain(target: LocalEngine) -> Guard:
    return Guard(target, generation={"max_new_tokens": 12})


@pytest.fixture(scope="session")
def start_live() -> Iterator[Callable[..., Live]]:
    started: list[Live] = []

    def start(served: Sequence[ServedModel], **settings: Any) -> Live:
        started.append(Live(served, **settings))
        return started[-1]

    yield start
    for live in started:
        live.stop()


@pytest.fixture(scope="session")
def live(start_live: Callable[..., Live], make_guard: Callable[..., Guard], plain: Guard) -> Live:
    """A guarded model, the bare one, and one whose judge lets nothing pass."""
    serving = ModelServing(limits=LIMITS)
    return start_live(
        [
            ServedModel.of("guarded", make_guard(), serving),
            ServedModel.of("plain", plain),
            ServedModel.of("strict", make_guard(lambda messages, response: 1.0)),
        ]
    )


@pytest.fixture(scope="session")
def client(live: Live) -> Any:
    return live.client()
