"""Steering in a real vLLM with its prefix cache on: it equals our own engine's."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import loaded

from anchorlm.engine import Edit, LocalEngine, Steering, runtime
from anchorlm.vllm import save_steering

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def target(smollm2: Path) -> LocalEngine:
    return loaded(smollm2)


MODES = ("eager", "compiled", "saved", "loaded")
"""The last two compile as a server on a GPU does. One saves what it has compiled, and one takes it, with other vectors.
"""


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def states(target: LocalEngine, mode: str) -> dict[str | None, Steering | None]:
    return states_of(mode, int(target.model.text_config.hidden_size))


def states_of(mode: str, width: int) -> dict[str | None, Steering | None]:
    """No two modes have the same vectors."""
    generator = torch.Generator().manual_seed(MODES.index(mode))

    def some(*layers: int) -> dict[int, Edit]:
        return {layer: Edit(shift=torch.randn(width, generator=generator)) for layer in layers}

    return {None: None, "calm": Steering(some(9, 10, 11), 0.3, "prompt"), "wild": Steering(some(5, 12, 20), 1.0, "all")}


@pytest.fixture(scope="module")
def run(smollm2: Path, target: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a vLLM printed in a mode. All have one compile cache, which is empty at first."""
    cache, width = tmp_path_factory.mktemp("cache"), int(target.model.text_config.hidden_size)

    @functools.cache
    def run(mode: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("steering")
        for name, state in states_of(mode, width).items():
            if state is not None:
                save_steering(state, folder / f"{name}.safetensors")
        (folder / "plugin.toml").write_text(
            '[steering]\ncalm = "./calm.safetensors"\nwild = "./wild.safetensors"\n', "utf-8"
        )
        environment = {**os.environ, "ANCHORLM_VLLM": str(folder / "plugin.toml"), "VLLM_CACHE_ROOT": str(cache),
                       "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
                       "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # fmt: skip
        environment.pop("ANCHORLM_VLLM_ANCHOR", None)
        script = Path(__file__).with_name("steered_scenario.py")
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(smollm2), mode],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        read: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
        return read

    return run


@pytest.fixture(scope="module")
def found(mode: str, run: Callable[[str], Any]) -> Any:
    if mode == "loaded":
        run("saved")
    return run(mode)


def test_only_the_last_mode_takes_what_was_compiled_before(found: dict[str, Any], mode: str) -> None:
    wanted = {"eager": (0, 0), "compiled": (1, 0), "saved": (1, 0), "loaded": (0, 1)}
    assert (found["compiled"], found["taken"]) == wanted[mode]


def ours(engine: LocalEngine, prompt: list[int], steering: Steering | None, tokens: list[int]) -> list[torch.Tensor]:
    """The log-probabilities before each of some tokens of the response."""

    async def read() -> list[torch.Tensor]:
        async with engine.open(prompt, room=len(tokens)) as row:
            row.steer(steering)
            steps = []
            for token in tokens:
                steps.append((await row.logits()).log_softmax(-1))
                row.append([token])
            return steps

    return runtime().run(read())


def differ(engine: LocalEngine, answer: dict[str, Any], steering: Steering | None) -> float:
    """How far an answer's log-probabilities are from ours, at most."""
    steps = ours(engine, answer["prompt"], steering, answer["tokens"])
    pairs = [(value, float(wanted[int(token)])) for wanted, step in zip(steps, answer["logprobs"], strict=True)
             for token, value in step.items()]  # fmt: skip
    worst: float = max(abs(one - other) for one, other in pairs)
    return worst


def test_requests_of_several_states_in_one_batch_are_steered_as_ours_are(
    found: dict[str, Any], target: LocalEngine, states: dict[Any, Any]
) -> None:
    for answer in found["batch"]:
        assert answer["prompt"] == target.model.encode([{"role": "user", "content": answer["text"]}])
        assert differ(target, answer, states[answer["state"]]) < 1e-3
    assert len({tuple(answer["tokens"]) for answer in found["batch"][:3]}) == 3


@pytest.mark.parametrize("order", ["clean first", "steered first"])
def test_the_prefix_cache_carries_no_state_over(
    found: dict[str, Any], target: LocalEngine, states: dict[Any, Any], order: str
) -> None:
    first, second, third = found[order]
    for answer in (first, second, third):
        assert differ(target, answer, states[answer["state"]]) < 1e-3
    assert second["cached"] == 0
    assert third["cached"] > 100  # the same state shares


def test_an_answer_that_was_left_alone_is_steered_as_a_part_of_the_next_prompt(
    found: dict[str, Any], target: LocalEngine, states: dict[Any, Any]
) -> None:
    """The cache holds it as it was written, where only the prompt is steered."""
    answer = found["answered before"]
    assert differ(target, answer, states["calm"]) < 1e-3


@pytest.mark.parametrize("order", ["clean first, unsalted", "steered first, unsalted"])
def test_without_the_salt_it_would(
    found: dict[str, Any], target: LocalEngine, states: dict[Any, Any], order: str
) -> None:
    _, second = found[order]
    assert second["cached"] > 100
    assert differ(target, second, states[second["state"]]) > 1e-2


def test_a_server_without_an_anchor_searches_with_beams(found: dict[str, Any], target: LocalEngine) -> None:
    first, second = found["beams"]
    assert first["tokens"] != second["tokens"]
    for beam in (first, second):
        prompt, tokens = beam["tokens"][:-4], beam["tokens"][-4:]
        steps = ours(target, prompt, None, tokens)
        total = sum(float(step[token]) for step, token in zip(steps, tokens, strict=True))
        assert beam["logprob"] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("state", [None, "wild"])
def test_captured_activations_are_ours(
    found: dict[str, Any], target: LocalEngine, states: dict[Any, Any], state: str | None
) -> None:
    async def read() -> torch.Tensor:
        prompt = target.model.encode([{"role": "user", "content": "What is the capital of France?"}])
        async with target.open(prompt) as row:
            row.steer(states[state])
            return (await row.activations())[:, -1]

    wanted, got = runtime().run(read()), torch.tensor(found[f"captured {state}"])
    scale = wanted.norm(dim=-1, keepdim=True)
    assert float(((got - wanted) / scale).abs().max()) < 1e-3


def test_no_answer_comes_from_a_step_in_which_a_block_was_left_out(run: Callable[[str], Any]) -> None:
    """In compiled code, the hooks are a part of what is compiled."""
    assert isinstance(found := run("eager")["left out"], str), found
