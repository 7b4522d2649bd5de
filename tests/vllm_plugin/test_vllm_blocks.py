"""Steering for a server's blocks, tried on blocks that give `(hidden, residual)` as a server's do."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from vllm_page import block

from anchorlm.engine import PLACES as ROWS
from anchorlm.engine import Edit, Steering, Wishes
from anchorlm.engine._vllm_activations import Inside, Steered
from anchorlm.records import DefenseError, UserError
from anchorlm.vllm import PluginSettings, SteeringFile, save_steering
from anchorlm.vllm._blocks import Span, SteeredBlocks
from anchorlm.vllm._reading import Reading
from anchorlm.vllm._states import salted

WIDTH, TOKENS, PLACES = 8, 24, 8


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
        model.layers, width=WIDTH, dtype=torch.float32, tokens=TOKENS, places=PLACES, states=len(states)
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
        [Span(0, 4, 1, 4, 0.5, (3,), 0), Span(4, 7, 0, 0, 1.0, (1, 2), 1), Span(7, 12, 2, 3, -2.0, (), 2)],
        [Span(0, 4, 0, 0, 1.0, (0, 2)), Span(4, 5, 1, 1), Span(5, 9, 0, 0, 1.0, (3,))],
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
            if (read := steered.read(index)) is None:
                assert not span.rows
                continue
            assert torch.allclose(read[0], torch.stack(wanted)[:, list(span.places)], atol=1e-5)
            edges = [] if span.summed is None else [span.summed, *(place + 1 for place in span.places), None]
            sums = [torch.stack([one[first:last].sum(0) for one in wanted]) for first, last in pairwise(edges)]
            assert read[1].shape[1] == len(sums)
            for number, total in enumerate(sums):
                assert torch.allclose(read[1][:, number], total, atol=1e-4)


def test_a_state_that_is_replaced_steers_by_the_new_one(model: Model) -> None:
    steered, tokens = put_on(model), torch.randn(3, WIDTH)
    with torch.inference_mode():
        steered.put(1, STATES[1])
        steered.lay_out([Span(0, 3, 1, 3)])
        assert torch.allclose(model(tokens), by_hand(model, tokens, STATES[1])[-1], atol=1e-5)


CUTS = st.lists(st.integers(1, 19), max_size=4).map(lambda cuts: [0, *sorted(set(cuts)), 20])


@given(until=st.integers(0, 20) | st.none(), edges=CUTS)
def test_a_prompt_that_is_read_in_pieces_is_steered_as_in_one(until: int | None, edges: list[int]) -> None:
    steered: list[int] = []
    for read, end in pairwise(edges):
        span = Span.of(Wishes(state=1, until=until), 3, end - read, read)
        steered += range(read, read + span.steered)
    assert steered == list(range(20 if until is None else until))


@given(
    edges=CUTS,
    again=st.integers(0, 4),
    places=st.sets(st.integers(0, 19), min_size=1, max_size=6).map(lambda found: tuple(sorted(found))),
    mean_from=st.integers(0, 19) | st.none(),
)
def test_a_prompt_that_is_read_in_pieces_or_once_more_is_read_as_in_one(
    edges: list[int], again: int, places: tuple[int, ...], mean_from: int | None
) -> None:
    begin = None if mean_from is None else min(mean_from, places[0])
    wishes = Wishes(capture="x", places=places, mean_from=begin)
    torch.manual_seed(0)
    model = Model().eval()
    steered, reading = put_on(model), Reading(wishes)
    tokens = torch.randn(20, WIDTH)
    for read, end in [*[*pairwise(edges)][:again], *pairwise(edges)]:
        steered.lay_out([Span(0, 2), Span.of(wishes, 2, end - read, read)])
        with torch.inference_mode():
            model(torch.cat([torch.zeros(2, WIDTH), tokens[read:end]]))
        if (found := steered.read(1)) is not None:
            reading.add(read, end, *found)
    whole = torch.stack(by_hand(model, tokens, {}))
    wanted = [whole[:, place] for place in places]
    if begin is not None:
        wanted = [torch.cat([whole[:, place], whole[:, begin : place + 1].mean(1)], -1) for place in places]
    assert reading.whole is not None
    assert torch.allclose(reading.whole, torch.stack(wanted, dim=1), atol=1e-4)


def test_a_mean_over_tokens_that_were_not_all_read_is_none() -> None:
    reading = Reading(Wishes(capture="x", places=(9,), mean_from=2))
    seen, sums = torch.ones(3, 1, WIDTH), torch.ones(3, 2, WIDTH)
    reading.add(6, 10, seen, sums)  # the first six were taken from a cache
    assert reading.whole is None
    reading.add(0, 10, seen, sums)
    assert reading.whole is not None


def test_what_finds_no_room_in_a_step_is_not_read_and_is_steered_all_the_same(model: Model) -> None:
    steered, tokens = put_on(model), torch.randn(12, WIDTH)
    steered.lay_out([Span(0, 7, 1, 7, 1.0, tuple(range(7))), Span(7, 12, 2, 5, 1.0, (1, 3))])
    with torch.inference_mode():
        got = model(tokens)
    assert steered.read(0) is not None
    assert steered.read(1) is None
    assert torch.allclose(got[7:], by_hand(model, tokens[7:], STATES[1])[-1], atol=1e-5)


def test_a_hook_that_is_left_out_is_an_error(model: Model) -> None:
    steered = put_on(model)
    steered.lay_out([Span(0, 2, 1, 2)])
    model.layers[1]._forward_hooks.clear()
    with torch.inference_mode():
        model(torch.randn(2, WIDTH))
    with pytest.raises(DefenseError, match="2 of 3 blocks"):
        steered.check()


def test_logits_that_are_no_numbers_are_an_error(model: Model) -> None:
    steered = put_on(model)
    steered.lay_out([Span(0, 2, 1, 2)])
    with torch.inference_mode():
        logits = model(torch.randn(2, WIDTH))
    logits = logits.clone()
    steered.check(logits)
    logits[1, 3] = torch.nan
    with pytest.raises(DefenseError, match="not numbers"):
        steered.check(logits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_a_steering_that_is_no_number_is_refused_wherever_it_comes_from(
    model: Model, tmp_path: Path, value: float
) -> None:
    file, steering = tmp_path / "one.safetensors", Steering({1: Edit(shift=torch.full((WIDTH,), value))}, 4.0)
    with pytest.raises(UserError, match="not finite"):
        save_steering(steering, file)
    with pytest.raises(UserError, match="not finite"):
        Steered.of(steering, 1)
    if value == 3e38:
        return
    save_file({"1": torch.full((WIDTH,), value)}, file, metadata={"positions": "all"})
    with pytest.raises(UserError, match="not finite"):
        SteeringFile.load(file)
    with pytest.raises(UserError, match="not finite"):
        put_on(model, [{1: torch.full((WIDTH,), value)}])


def test_many_reads_share_the_room_in_turn_and_logits_need_none() -> None:
    async def run() -> list[str]:
        inside, done = Inside(None, 1.0), []

        async def one(name: str, rows: int, seconds: float) -> None:
            async with inside.read(Wishes(capture=name, places=tuple(range(rows)))):
                await asyncio.sleep(seconds)
                done.append(name)

        await asyncio.gather(
            one("large", ROWS, 0.05), one("half", ROWS // 2, 0.01), one("next", ROWS, 0.01),
            one("small", 1, 0.0), one("logits", 0, 0.0),
        )  # fmt: skip
        assert inside._room == ROWS
        return done

    assert asyncio.run(run()) == ["logits", "large", "half", "next", "small"]


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


def test_salts_differ_by_state_by_where_it_ends_and_by_client() -> None:
    found = {salted(salt, digest, end) for salt in (None, "", "x") for digest in ("a", "b") for end in (None, 0, 7)}
    assert len(found) == 18


def test_the_steering_of_the_page_can_be_written_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python", "save_steering(", {}), {"vector": torch.ones(WIDTH)})
    (tmp_path / "plugin.toml").write_text(block("toml", "[steering]"), "utf-8")
    settings = PluginSettings.from_environment({"ANCHORLM_VLLM": str(tmp_path / "plugin.toml")})
    assert settings is not None
    assert torch.equal(settings.loaded["calm"].shifts[12], torch.ones(WIDTH))
