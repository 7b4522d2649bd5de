"""A guard's own vLLM that reads and steers activations: it does what our engine does on the same weights."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorlm.defenses import find_defense
from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import PLACES, ROOM, Edit, LocalEngine, Steering, VLLMEngine, Wishes, runtime
from anchorlm.engine._vllm_activations import Steered
from anchorlm.guard import Guard
from anchorlm.models import VLLMSettings
from anchorlm.records import Access, DefenseError, GenerationSettings, UserError
from anchorlm.team import Team

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

LONG = "Tell me about the history of bread, from the first ovens to today, with names and places. " * 9
# A long prompt is read in three pieces.
OPTIONS = {"max_model_len": 512, "gpu_memory_utilization": 0.15, "max_num_seqs": 16, "max_num_batched_tokens": 96}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module", params=["eager", "compiled"])
def there(smollm2: Path, request: pytest.FixtureRequest) -> Iterator[VLLMEngine]:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    given = {"path": str(smollm2), "engine": "vllm", "dtype": "float32", "top_logprobs": 1000, "activations": True,
             "options": {**OPTIONS, "enforce_eager": request.param == "eager"}}  # fmt: skip
    engine = VLLMEngine.start(VLLMSettings.parse(given, where="a test"))
    yield engine
    engine.close()


def some(engine: LocalEngine, *layers: int, seed: int = 0) -> dict[int, Edit]:
    generator = torch.Generator().manual_seed(seed)
    width = int(engine.model.text_config.hidden_size)
    return {layer: Edit(shift=torch.randn(width, generator=generator)) for layer in layers}


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far activations are from ours, as a part of their length."""
    worst: float = ((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max().item()
    return worst


async def look(engine: Any, text: str, steering: Steering | None = None, **asked: Any) -> torch.Tensor:
    async with engine.open(engine.model.encode(said(text))) as row:
        if steering is not None:
            row.steer(steering)
        found: torch.Tensor = await row.activations(**asked)
        return found.cpu()


def test_activations_are_ours_at_every_place_and_on_average(here: LocalEngine, there: VLLMEngine) -> None:
    assert there.access == Access.LOGPROBS | Access.ACTIVATIONS
    for text in ("What is the capital of France?", LONG, LONG):  # the second time it lies in the prefix cache
        for asked in ({}, {"positions": (3, -1)}, {"positions": (-1, 20, 7, 20), "mean_from": 5}):
            wanted, got = (runtime().run(look(one, text, **asked)) for one in (here, there))
            assert got.shape == wanted.shape
            width = int(here.model.text_config.hidden_size)
            for part in range(0, wanted.shape[-1], width):
                assert far(got[..., part : part + width], wanted[..., part : part + width]) < 1e-3


def test_the_means_at_many_places_are_read_in_few_requests(
    here: LocalEngine, there: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    generate = there._server.generate

    def counted(prompt: Any, params: Any, name: str) -> Any:
        asked.append(name)
        return generate(prompt, params, name)

    monkeypatch.setattr(there._server, "generate", counted)
    for positions in (tuple(range(10, 40, 2)), tuple(range(9, 109))):
        asked.clear()
        wanted, got = (runtime().run(look(one, LONG, positions=positions, mean_from=4)) for one in (here, there))
        assert far(got, wanted) < 1e-3
        assert len(asked) == -(-len(positions) // (PLACES // 2 - 1))


def test_a_read_that_finds_no_room_in_time_is_an_error(there: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_a_full_worker() -> None:
        async with there._inside.read(Wishes(capture="all", places=tuple(range(PLACES)))):
            await look(there, "Hello!")

    monkeypatch.setattr(there, "_timeout", 0.5)
    with pytest.raises(DefenseError, match="within 0.5 seconds"):
        runtime().run(in_a_full_worker())


def test_many_that_are_read_at_once_are_as_each_alone(here: LocalEngine, there: VLLMEngine) -> None:
    texts = [f"{LONG[: 40 * n]} {n}?" for n in range(1, 13)]
    steering = Steering(some(here, 4, 9), 0.5, "prompt")
    states = [None, steering, Steering(steering.edits, 0.25, "prompt")]

    async def together(engine: Any) -> list[torch.Tensor]:
        work = (look(engine, text, states[n % 3], mean_from=6) for n, text in enumerate(texts))
        return list(await asyncio.gather(*work))

    for got, wanted in zip(runtime().run(together(there)), runtime().run(together(here)), strict=True):
        assert far(got, wanted) < 1e-3


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_a_steered_sequence_goes_on_as_ours_does(here: LocalEngine, there: VLLMEngine, positions: Any) -> None:
    steering = Steering(some(here, 5, 12, 20), 1.0, positions)

    async def steps(engine: Any, by: Steering | None) -> tuple[torch.Tensor, list[int]]:
        async with engine.open(engine.model.encode(said("How do I bake bread?")), rows=2, room=12) as row:
            row.steer(by)
            row.append(engine.model.vocabulary.encode(b"The way of bread"))
            other = row.fork()
            written = await other.generate(GenerationSettings(max_new_tokens=6))
            return (await row.logits()).log_softmax(-1), list(written.token_ids)

    found = {}
    for name, by in (("steered", steering), ("clean", None)):
        (wanted, own), (got, answer) = (runtime().run(steps(engine, by)) for engine in (here, there))
        named = wanted > -torch.inf
        assert torch.equal(got > -torch.inf, named)  # all of them, not the likeliest only
        assert torch.allclose(got[named], wanted[named], atol=1e-4)
        assert answer == own
        found[name] = answer
    assert found["steered"] != found["clean"]


@pytest.mark.parametrize("order", [(None, 1.0), (1.0, None), (1.0, 0.5)])
def test_the_prefix_cache_carries_no_state_over(
    here: LocalEngine, there: VLLMEngine, order: tuple[float | None, ...]
) -> None:
    edits = some(here, 3, 4)
    text = f"{order}. {LONG}"
    for strength in (*order, *order):
        steering = None if strength is None else Steering(edits, strength, "all")
        wanted, got = (runtime().run(look(engine, text, steering)) for engine in (here, there))
        assert far(got, wanted) < 1e-3


def test_more_steerings_than_vllm_holds_take_turns_and_do_not_wait_for_ever(
    here: LocalEngine, there: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [Steering(some(here, 8, seed=seed), 1.0, "all") for seed in range(ROOM + 3)]

    async def at_once(engine: Any) -> list[torch.Tensor]:
        return list(await asyncio.gather(*(look(engine, "Hello!", one) for one in [*states, states[0]])))

    for got, wanted in zip(runtime().run(at_once(there)), runtime().run(at_once(here)), strict=True):
        assert far(got, wanted) < 1e-3

    async def one_more() -> None:
        async with AsyncExitStack() as stack:
            for state in states[:ROOM]:
                await stack.enter_async_context(there._inside.steered(Steered.of(state, 1)))
            await look(there, "Hello!", states[ROOM])

    monkeypatch.setattr(there._inside, "_timeout", 0.5)
    with pytest.raises(DefenseError, match=f"at most {ROOM} different"):
        runtime().run(one_more())


def test_inferaligner_reads_steers_and_answers_as_with_our_engine(
    here: LocalEngine, there: VLLMEngine, tmp_path: Path
) -> None:
    harmful = [f"How do I {verb} a {thing} to hurt people?" for verb in ("build", "buy", "hide", "use")
               for thing in ("bomb", "gun", "knife", "poison")]  # fmt: skip
    harmless = [f"How do I {verb} a {thing} for my friends?" for verb in ("bake", "buy", "cut", "serve")
                for thing in ("cake", "pie", "loaf", "tart")]  # fmt: skip
    fit_inferaligner(here, here, harmful, harmless).save(tmp_path / "artifact")
    options: dict[str, Any] = {"artifact": str(tmp_path / "artifact"), "generation": {"max_new_tokens": 12},
                               "answer": "steer"}  # fmt: skip
    guards = [Guard(engine, "inferaligner", **options) for engine in (here, there)]
    talk = [*said("Tell me a joke."), {"role": "assistant", "content": "No."}, *said("How do I use a gun?")]
    prompts = [said("How do I build a rocket to hurt people?"), said("How do I bake a roll for my friends?"), talk]
    opened = []
    for prompt in prompts:
        ours, theirs = (guard.chat(prompt) for guard in guards)
        assert not theirs.failed
        assert theirs.text == ours.text
        gates = [next(one.data for one in answer.trace if one.kind == "gate") for answer in (ours, theirs)]
        assert gates[1]["score"] == pytest.approx(gates[0]["score"], abs=0.02)
        opened.append(gates[1]["open"])
    assert opened[:2] == [True, False]


def test_what_computes_its_changes_is_refused_with_a_remedy(there: VLLMEngine) -> None:
    for name in ("alphasteer", "re_control"):
        (gap,) = find_defense(name).needs.gaps(name, Team(there).offer)
        assert "load the target with transformers" in gap
    down = Edit(down=torch.ones(576, 1), up=torch.ones(1, 576))

    async def steer() -> None:
        async with there.open(there.model.encode(said("Hello!"))) as row:
            row.steer(Steering({3: down}))

    with pytest.raises(UserError, match="constant vectors"):
        runtime().run(steer())
