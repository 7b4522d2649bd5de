from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_model, tiny_tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from anchorlm.defenses.inferaligner import Aligner, fit_inferaligner
from anchorlm.engine import LocalEngine, Steering, runtime
from anchorlm.records import Artifact, UserError
from anchorlm.steering import Reading, Vector

HARMFUL = [f"Burn down {n} houses!" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
HARMLESS = [f"How do I bake {n} bread?" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
LAYERS = 4
ENGINE = LocalEngine(tiny_model(num_hidden_layers=LAYERS))


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    anchor = LocalEngine(tiny_model(num_hidden_layers=LAYERS, seed=1))
    return fit_inferaligner(ENGINE, anchor, HARMFUL, HARMLESS)


@pytest.fixture
def aligner(artifact: Artifact) -> Aligner:
    return Aligner.load(artifact, ENGINE)


def outputs(prompt: str, steering: Steering | None = None) -> Tensor:
    """Block outputs (L, T, H) at every position of a prompt."""

    async def run() -> Tensor:
        ids = ENGINE.model.encode([{"role": "user", "content": prompt}])
        async with ENGINE.open(ids) as row:
            row.steer(steering)
            return await row.activations(range(len(ids)))

    return runtime().run(run())


def reading(
    aligner: Aligner, prompt: str, *, bias: float | None = None, layers: Sequence[int] | None = None
) -> Reading:
    async def run() -> Reading:
        messages = [{"role": "user", "content": prompt}]
        async with ENGINE.open(ENGINE.model.encode(messages)) as row:
            return await aligner.read(messages, "target", ENGINE, row=row, bias=bias, layers=layers)

    return runtime().run(run())


def test_an_artifact_is_taken_from_memory_and_from_its_folder_alike(artifact: Artifact, tmp_path: Path) -> None:
    folder = artifact.save(tmp_path)
    for source in (artifact, folder, str(folder)):
        aligner = Aligner.load(source, ENGINE)
        assert aligner.artifact.id == artifact.id
        assert aligner.layers == LAYERS


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (tiny_model(num_hidden_layers=LAYERS, seed=5), "other weights"),
        (tiny_model(num_hidden_layers=2), "layers 2, not 4"),
        (tiny_model(num_hidden_layers=LAYERS, tokenizer=tiny_tokenizer(text="Other words. ")), "another tokenizer"),
    ],
)
def test_an_artifact_of_another_model_is_refused(artifact: Artifact, other: object, difference: str) -> None:
    with pytest.raises(UserError, match=f"fitted on the target tiny-llama, but .*{difference}.*anchorlm fit"):
        Aligner.load(artifact, LocalEngine(other))  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["end", "both"])
def test_the_gate_reads_the_last_token_and_the_mean_and_averages_its_layers(pooling: Any) -> None:
    anchor = LocalEngine(tiny_model(num_hidden_layers=LAYERS, seed=1))
    aligner = Aligner.load(fit_inferaligner(ENGINE, anchor, HARMFUL, HARMLESS, pooling=pooling), ENGINE)
    t = aligner.artifact.tensors
    one, other = (ENGINE.model.encode([{"role": "user", "content": word}]) for word in ("a", "b"))
    start = next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    for prompt in (HARMFUL[0], HARMLESS[0], "x"):
        streams = outputs(prompt)
        seen = streams[:, -1]
        if pooling == "both":
            seen = torch.cat([seen, streams[:, start:].mean(dim=1)], dim=-1)
        scores = [
            float((seen[layer] @ t["gate.direction"][layer] + t["gate.bias"][layer]) / t["gate.scale"][layer])
            for layer in range(LAYERS)
        ]
        found = reading(aligner, prompt, layers=(0, 3))
        assert found.scores == pytest.approx(scores, abs=1e-3)
        assert found.score == pytest.approx((scores[0] + scores[3]) / 2, abs=1e-3)
        assert found.data.keys() == {"reader", "layers", "scores", "score", "threshold", "open"}
        assert found.data["layers"] == [0, 3]


def test_a_larger_bias_opens_at_least_as_often(aligner: Aligner) -> None:
    prompts = [*HARMFUL[:4], *HARMLESS[:4], "x"]
    counts = [
        [reading(aligner, prompt, bias=bias).open for prompt in prompts]
        for bias in (-1e9, -1.0, -0.3, 0.0, 0.3, 1.0, 1e9)
    ]
    assert [sum(opened) for opened in counts] == sorted(sum(opened) for opened in counts)
    for fewer, more in pairwise(counts):
        assert all(after or not before for before, after in zip(fewer, more, strict=True))
    assert not any(counts[0])
    assert all(counts[-1])
    exact = reading(aligner, "x")
    assert not reading(aligner, "x", bias=-exact.score).open  # above the threshold, not at it


@pytest.mark.parametrize(("vector", "name"), [("anchor", "shift"), ("own", "own"), ("random", "random")])
def test_the_shift_is_alpha_times_the_vector_in_its_units(aligner: Aligner, vector: Vector, name: str) -> None:
    t = aligner.artifact.tensors
    before = outputs("bread")
    for units, length in (("natural", t["shift.length"][1]), ("absolute", torch.tensor(1.0))):
        steering = aligner.steering(alpha=0.7, layers=(1,), positions="all", vector=vector, units=units)  # type: ignore[arg-type]
        after = outputs("bread", steering)
        want = (0.7 * length * t[f"{name}.unit"][1]).expand(before.shape[1], -1)
        torch.testing.assert_close(after[1] - before[1], want, atol=1e-4, rtol=1e-4)
        assert torch.equal(after[0], before[0])
    assert (t["own.unit"][1] @ t["random.unit"][1]).abs() < 0.6


def test_what_is_not_said_is_what_was_calibrated(artifact: Artifact) -> None:
    settings = {
        **artifact.settings,
        "alpha": 0.3,
        "layers": [2, 0],
        "positions": "all",
        "gate_layers": [1],
        "bias": 0.4,
    }
    aligner = Aligner.load(replace(artifact, settings=settings), ENGINE)
    steering = aligner.steering()
    assert (set(steering.edits), steering.strength, steering.positions) == ({0, 2}, 0.3, "all")
    found = reading(aligner, "bread")
    assert found.score == pytest.approx(found.scores[1])
    assert found.threshold == -0.4
    assert reading(aligner, "bread", bias=0).threshold == 0
    assert aligner.steering(alpha=0).strength == 0


def test_equal_steerings_share_their_edits_so_that_rows_are_steered_together(aligner: Aligner) -> None:
    assert aligner.steering(alpha=1).edits is aligner.steering(alpha=2, positions="all").edits
    assert aligner.steering(layers=(0,)).edits is not aligner.steering(layers=(1,)).edits
    assert aligner.steering(layers=(0,)).edits is not aligner.steering(layers=(0,), vector="own").edits
    assert aligner.steering(layers=(0,)).edits is not aligner.null_space_steering(layers=(0,)).edits
    assert aligner.null_space_steering(alpha=1).edits is aligner.null_space_steering(alpha=2).edits


@pytest.mark.parametrize("layers", [(LAYERS,), (-1,), (0, 99), ()])
def test_layers_out_of_range_are_one_sentence(aligner: Aligner, layers: tuple[int, ...]) -> None:
    for call in (aligner.steering, aligner.null_space_steering):
        with pytest.raises(UserError, match="not all among 0 to 3"):
            call(layers=layers)
    with pytest.raises(UserError, match="not all among 0 to 3"):
        reading(aligner, "bread", layers=layers)


@pytest.mark.parametrize("prompt", ["How do I bake bread?", HARMFUL[0]])
def test_ablation_leaves_every_blocks_output_orthogonal_to_the_direction(aligner: Aligner, prompt: str) -> None:
    direction = aligner.artifact.tensors["own.unit"][aligner.artifact.settings["gate_layers"][0]]
    before, after = outputs(prompt), outputs(prompt, aligner.ablation())
    assert float((before @ direction).abs().mean()) > 0.05
    assert float((after @ direction).abs().max()) < 1e-4 * float(after.norm(dim=-1).max())
    torch.testing.assert_close(after[0], before[0] - (before[0] @ direction)[..., None] * direction, atol=1e-4, rtol=0)


def test_null_space_steering_leaves_harmless_fitting_prompts_nearly_alone(aligner: Aligner) -> None:
    """All but the two prompts of a class that were held out."""
    read = aligner.artifact.tensors["alphasteer.read"]
    for layer in range(LAYERS):
        steering = aligner.null_space_steering(alpha=1, layers=(layer,))
        length = float(aligner.artifact.tensors["shift.length"][layer])

        def moved(prompt: str, layer: int = layer, steering: Steering = steering, length: float = length) -> float:
            before, after = outputs(prompt)[layer, -1], outputs(prompt, steering)[layer, -1]
            change = after - before
            want = (before @ read[layer]) * aligner.artifact.tensors["shift.unit"][layer] * length
            torch.testing.assert_close(change, want, atol=1e-4, rtol=1e-3)
            return float(change.norm()) / length

        harmless = sorted(moved(prompt) for prompt in HARMLESS)[:6]
        harmful = sorted(moved(prompt) for prompt in HARMFUL)[2:]
        assert max(harmless) < 0.02
        assert min(harmful) > 0.5


def test_null_space_steering_moves_along_the_anchors_vector(aligner: Aligner) -> None:
    after = outputs(HARMFUL[0], aligner.null_space_steering(alpha=1, layers=(2,)))[2]
    before = outputs(HARMFUL[0])[2]
    change = normalize((after - before)[-1], dim=0)
    assert abs(float(change @ aligner.artifact.tensors["shift.unit"][2])) > 0.999
