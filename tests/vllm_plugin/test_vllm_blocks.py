"""Steering for a server's blocks, tried on blocks that give `(hidden, residual)` as a server's do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from vllm_page import block

from anchorlm.engine import Edit, Steering, Wishes
from anchorlm.records import DefenseError, UserError
from anchorlm.vllm import PluginSettings, SteeringFile, save_steering
from anchorlm.vllm._blocks import Span, SteeredBlocks
from anchorlm.vllm._states import salted

WIDTH, TOKENS, REQUESTS = 8, 16, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = hidden + residual
        return self.linear(residual).tanh(), residual


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, residual = tokens, torch.zeros_like(tokens)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


STATES = [{0: torch.ones(WIDTH), 2: torch.full((WIDTH,), -2.0)}, {1: torch.arange(WIDTH).float()}]


def put_on(model: Model, states: Any = STATES) -> SteeredBlocks:
    blocks = SteeredBlocks(
        model.layers, width=WIDTH, dtype=torch.float32, tokens=TOKENS, requests=REQUESTS, states=len(states)
    )
    for number, state in enumerate(states, 1):
        blocks.put(number, state)
    return blocks


def by_hand(model: Model, tokens: torch.Tensor, state: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """The activations after each block."""
    hidden, residual, found = tokens, torch.zeros_like(tokens), []
    for index, layer in enumerate(model.layers):
        residual = hidden + residual
        hidden = cast("Block", layer).linear(residual).tanh() + state.get(index, torch.zeros(WIDTH))
        found.append(hidden + residual)
    return found


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_token_gets_what_its_request_is_steered_by(model: Model, compiled: bool) -> None:
    steered = put_on(model)
    run = torch.compile(model, backend="aot_eager", dynamic=True, fullgraph=True) if compiled else model
    for spans in (
        [Span(0, 3), Span(3, 7, 1, 4), Span(7, 8, 2, 1)],
        [Span(0, 5, 2, 5)],
        [Span(0, 4, 1, 2), Span(4, 6)],  # the last two tokens of the first one are not of the prompt
        [Span(0, 4, 1, 4, 0.5, 0), Span(4, 7, 0, 0, 1.0, 2), Span(7, 12, 2, 3, -2.0)],
    ):
        tokens = torch.randn(spans[-1].end, WIDTH)
        steered.lay_out(spans)
        with torch.inference_mode():
            got = run(tokens)
            steered.check()
        for index, span in enumerate(spans):
            wanted = by_hand(model, tokens[span.start : span.end], {})
            if span.state:
                added = {layer: span.strength * shift for layer, shift in STATES[span.state - 1].items()}
                touched = by_hand(model, tokens[span.start : span.end], added)
                for one, other in zip(wanted, touched, strict=True):
                    one[: span.steered] = other[: span.steered]
            assert torch.allclose(got[span.start : span.end], wanted[-1], atol=1e-5)
            assert torch.allclose(steered.activations(index), torch.stack([one[-1] for one in wanted]), atol=1e-5)
            total = [one[span.summed :].sum(0) if span.summed is not None else torch.zeros(WIDTH) for one in wanted]
            assert torch.allclose(steered.sums(index), torch.stack(total), atol=1e-4)


def test_a_state_that_is_replaced_steers_by_the_new_one(model: Model) -> None:
    steered, tokens = put_on(model), torch.randn(3, WIDTH)
    with torch.inference_mode():
        steered.put(1, STATES[1])
        steered.lay_out([Span(0, 3, 1, 3)])
        assert torch.allclose(model(tokens), by_hand(model, tokens, STATES[1])[-1], atol=1e-5)


@given(
    mean_from=st.integers(0, 20), until=st.integers(0, 20) | st.none(), cuts=st.lists(st.integers(1, 19), max_size=4)
)
def test_a_prompt_that_is_read_in_pieces_is_steered_and_summed_as_in_one(
    mean_from: int, until: int | None, cuts: list[int]
) -> None:
    wishes = Wishes(state=1, until=until, capture="x", mean_from=mean_from)
    steered: list[int] = []
    summed: list[int] = []
    edges = [0, *sorted(set(cuts)), 20]
    for read, end in pairwise(edges):
        span = Span.of(wishes, 3, end - read, read)
        steered += range(read, read + span.steered)
        summed += [] if span.summed is None else range(read + span.summed, end)
    assert steered == list(range(20 if until is None else until))
    assert summed == list(range(mean_from, 20))


def test_a_hook_that_is_left_out_is_an_error(model: Model) -> None:
    steered = put_on(model)
    steered.lay_out([Span(0, 2, 1, 2)])
    model.layers[1]._forward_hooks.clear()
    with torch.inference_mode():
        model(torch.randn(2, WIDTH))
    with pytest.raises(DefenseError, match="2 of 3 blocks"):
        steered.check()


def test_a_steering_of_another_model_is_refused(model: Model) -> None:
    for state in ({7: torch.ones(WIDTH)}, {0: torch.ones(WIDTH + 1)}):
        with pytest.raises(UserError, match="another model"):
            put_on(model, [state])


def test_a_file_gives_back_what_was_saved_with_its_strength(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_steering(Steering({1: Edit(shift=torch.ones(WIDTH))}, 0.5, "prompt"), file)
    found = SteeringFile.load(file)
    assert found.positions == "prompt"
    assert torch.equal(found.shifts[1], torch.full((WIDTH,), 0.5))
    other = tmp_path / "other.safetensors"
    save_steering(Steering({1: Edit(shift=torch.ones(WIDTH))}, 0.6, "prompt"), other)
    assert SteeringFile.load(other).digest != found.digest


def test_what_is_no_steering_of_a_server_is_refused(tmp_path: Path) -> None:
    down = Edit(down=torch.ones(WIDTH, 1), up=torch.ones(1, WIDTH))
    with pytest.raises(UserError, match="constant vectors"):
        save_steering(Steering({0: down}), tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"no")
    for name in ("y.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match="save_steering"):
            SteeringFile.load(tmp_path / name)


def test_salts_differ_by_state_and_by_client() -> None:
    found = {salted(salt, digest) for salt in (None, "", "x") for digest in ("a", "b")}
    assert len(found) == 6


def test_the_steering_of_the_page_can_be_written_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python", "save_steering(", {}), {"vector": torch.ones(WIDTH)})
    (tmp_path / "plugin.toml").write_text(block("toml", "[steering]"), "utf-8")
    settings = PluginSettings.from_environment({"ANCHORLM_VLLM": str(tmp_path / "plugin.toml")})
    assert settings is not None
    assert torch.equal(settings.loaded["calm"].shifts[12], torch.ones(WIDTH))
