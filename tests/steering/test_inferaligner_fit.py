from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES, tiny_model, tiny_tokenizer, tiny_weights
from torch import Tensor
from torch.nn.functional import normalize

from anchorlm.defenses.inferaligner import best_threshold, fit_inferaligner, matching_layer
from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel, stamp
from anchorlm.records import Artifact, UserError, wilson
from anchorlm.steering import cosine_scores, own_start, prompt_activations

pytestmark = pytest.mark.slow

HARMFUL = [f"Burn down {n} houses!" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
HARMLESS = [f"How do I bake {n} bread?" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]


def fit(target: LocalEngine, anchor: LocalEngine, **options: Any) -> Artifact:
    options = {"harmful": HARMFUL, "harmless": HARMLESS, **options}
    return fit_inferaligner(target, anchor, **options)


def streams(model: CausalModel, prompts: Sequence[str], start: int = -1) -> Tensor:
    """Block outputs (n, L, H) at the last token of each prompt, or on average from one on: a plain forward each."""
    found = []
    for prompt in prompts:
        outputs: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Any, outputs: list[Tensor] = outputs) -> None:
            outputs.append((output[0] if isinstance(output, tuple) else output)[0, start:].mean(dim=0))

        handles = [block.register_forward_hook(keep) for block in model.blocks]
        with torch.inference_mode():
            ids = model.encode([{"role": "user", "content": prompt}])
            model.model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        found.append(torch.stack(outputs))
    return torch.stack(found)


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, atol=1e-3, rtol=1e-3)


def fitted_on(difference: Tensor, bad: Tensor, good: Tensor, held: int = 2) -> tuple[list[int], list[int]]:
    """Which harmful and harmless prompts were held out: those without which the means explain the difference (L, H)."""
    outs = [list(out) for out in combinations(range(len(bad)), held)]
    high, low = (torch.stack([_without(each, out).mean(dim=0) for out in outs]) for each in (bad, good))
    errors = (high[:, None] - low[None] - difference).abs().amax(dim=(2, 3))  # (harmful splits, harmless splits)
    assert float(errors.min()) < 1e-4
    best = int(errors.argmin())
    return outs[best // len(outs)], outs[best % len(outs)]


def _without(rows: Tensor, out: Sequence[int]) -> Tensor:
    return rows[[index for index in range(len(rows)) if index not in out]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_every_architecture_it_is_the_paper_written_out(name: str) -> None:
    target, anchor = LocalEngine(tiny_model(name)), LocalEngine(tiny_model(name, seed=1))
    made = fit(target, anchor, whitening="none", pooling="end")
    t, n = made.tensors, len(HARMFUL)
    bad, good = streams(target.model, HARMFUL), streams(target.model, HARMLESS)
    out, other = fitted_on(t["own.unit"] * t["own.length"][:, None], bad, good)
    assert close(t["own.unit"].norm(dim=-1), torch.ones(2))
    kept, kept_good = [i for i in range(n) if i not in out], [i for i in range(n) if i not in other]

    # The gate: s_l, b_l, and its accuracy on what was held out
    s = t["gate.direction"]
    assert close(s, t["own.unit"])
    high, low = ((each * s).sum(dim=-1) for each in (bad[kept].mean(dim=0), good[kept_good].mean(dim=0)))
    assert close(t["gate.bias"], -(high + low) / 2)
    assert close(t["gate.scale"], (high - low) / 2)
    for layer, figures in enumerate(made.figures["gate"]):
        opened = sum(float(bad[i, layer] @ s[layer] + t["gate.bias"][layer]) > 0 for i in out)
        closed = sum(float(good[i, layer] @ s[layer] + t["gate.bias"][layer]) <= 0 for i in other)
        assert (figures["harmful opened"], figures["harmless closed"]) == (opened / 2, closed / 2)
        assert figures["harmful interval"] == pytest.approx(wilson(opened, 2), abs=1e-4)
        assert figures["balanced"] == (opened + closed) / 4

    apart = bad[out].mean(dim=0) - good[other].mean(dim=0)
    wanted = (normalize(apart, dim=-1) * t["own.unit"]).sum(dim=-1).tolist()
    # Where prompts hardly differ in a layer (Gemma scales its embeddings), their direction is rounding.
    firm = (apart.norm(dim=-1) > 1e-4 * good.mean(dim=0).norm(dim=-1)).tolist()
    found = made.figures["cosine of its own direction on held-out prompts"]
    assert any(firm)
    assert [f for f, one in zip(found, firm, strict=True) if one] == pytest.approx(
        [w for w, one in zip(wanted, firm, strict=True) if one], abs=0.1
    )
    assert made.figures["largest cosine of a random direction through the map"] == []

    # The shift: theta_l of the anchor on the same prompts
    theirs = streams(anchor.model, HARMFUL)[kept].mean(dim=0) - streams(anchor.model, HARMLESS)[kept_good].mean(dim=0)
    sign = made.figures["sign"]["sign"]
    assert close(t["shift.unit"] * t["shift.length"][:, None], sign * theirs)

    # CAST's condition on what was held out
    for layer in range(2):
        high, low = (
            torch.stack([cosine_scores(row, t["own.unit"])[layer] for row in each]) for each in (bad[out], good[other])
        )
        assert float(t["cast.threshold"][layer]) == pytest.approx(best_threshold(high, low)[0], abs=1e-3)
    assert {tensor.shape for name, tensor in t.items() if not name.startswith("reader_")} == {(2,), (2, 64)}
    assert close(t["reader_gate.direction"] * theirs.norm(dim=-1, keepdim=True), theirs)


def test_a_gate_that_reads_the_whole_prompt_is_the_mean_of_two_and_nothing_else_changes() -> None:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model(seed=1))
    end, both = (fit(target, anchor, pooling=pooling) for pooling in ("end", "both"))
    for name, tensor in end.tensors.items():
        if "gate." not in name:
            assert close(tensor, both.tensors[name])
    for name in ("gate", "reader_gate"):
        (d, b, s), (two, bias, scale) = (
            [one.tensors[f"{name}.{part}"] for part in ("direction", "bias", "scale")] for one in (end, both)
        )
        assert close(scale, torch.ones(2))
        assert close(2 * two[:, :64], d / s[:, None])
        throughout = 2 * two[:, 64:], 2 * bias - b / s
        means = [throughs(engine.model, prompts) for engine, prompts in _classes(name, target, anchor)]
        high, low = ((each * throughout[0]).sum(dim=-1) + throughout[1] for each in means)
        assert float(high.mean()) == pytest.approx(1, abs=0.25)  # of the prompts that were held out, too
        assert float(low.mean()) == pytest.approx(-1, abs=0.25)


def _classes(name: str, target: LocalEngine, anchor: LocalEngine) -> list[tuple[LocalEngine, list[str]]]:
    return [(target if name == "gate" else anchor, prompts) for prompts in (HARMFUL, HARMLESS)]


def throughs(model: CausalModel, prompts: Sequence[str]) -> Tensor:
    """The means (n, L, H) over each prompt's own tokens, by one plain forward each."""
    return streams(model, prompts, own_start(model))


@pytest.mark.parametrize("pooling", ["end", "both"])
@pytest.mark.parametrize("name", ["llama", "falcon", "mistral"])
def test_activations_are_those_of_one_plain_forward_a_prompt(name: str, pooling: Any) -> None:
    model = tiny_model(name)
    prompts = [*HARMFUL, "x " * 30, *HARMLESS] * 4

    async def collect() -> list[Tensor]:
        return [each async for each in prompt_activations(LocalEngine(model, max_rows=5), prompts, pooling)]

    want = streams(model, prompts[:17])
    if pooling == "both":
        want = torch.cat([want, throughs(model, prompts[:17])], dim=-1)
    for index, found in enumerate(runtime().run(collect())):
        assert close(found, want[index % 17])


@pytest.mark.parametrize("other", [{}, {"hidden_size": 32}, {"num_hidden_layers": 5}, {"architecture": "gpt2"}])
def test_vectors_of_another_family_cross_by_a_ridge_map_of_the_harmless_prompts(other: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer(290, text="Sorry, I cannot help you with that request. ")
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model(tokenizer=tokenizer, seed=1, **other))
    made = fit(target, anchor, whitening="none", pooling="end")
    t = made.tensors
    bad, good = streams(target.model, HARMFUL), streams(target.model, HARMLESS)
    out, others = fitted_on(t["own.unit"] * t["own.length"][:, None], bad, good)
    kept, kept_good = ([i for i in range(8) if i not in each] for each in (out, others))
    theirs, theirs_good = (
        streams(anchor.model, prompts)[each] for prompts, each in ((HARMFUL, kept), (HARMLESS, kept_good))
    )
    for layer in range(2):
        place = matching_layer(layer, 2, theirs.shape[1])
        x, y = theirs_good[:, place].double(), good[kept_good, layer].double()
        a, b = x - x.mean(dim=0), y - y.mean(dim=0)
        strength = made.figures["mapped"][layer]["strength"]
        penalty = strength * a.square().mean() * len(a) * torch.eye(a.shape[1], dtype=torch.float64)
        theta = (theirs.mean(dim=0) - theirs_good.mean(dim=0))[place].double()
        want = normalize(theta @ torch.linalg.solve(a.T @ a + penalty, a.T @ b), dim=0).float()
        assert close(made.figures["sign"]["sign"] * want, t["shift.unit"][layer])
        chance = made.figures["largest cosine of a random direction through the map"][layer]
        assert abs(made.figures["cosine of a random direction"][layer]) < chance <= 1
        cosine = made.figures["cosine with the target's own direction"][layer]
        assert cosine == pytest.approx(float(t["shift.unit"][layer] @ t["own.unit"][layer]), abs=1e-3)
    assert close(t["shift.length"], t["own.length"])
    assert {tensor.shape for name, tensor in t.items() if not name.startswith("reader_")} == {(2,), (2, 64)}
    assert close(t["reader_gate.direction"], normalize(theirs.mean(dim=0) - theirs_good.mean(dim=0), dim=-1))


def test_an_artifact_of_any_options_is_saved_and_loaded(tmp_path: Path) -> None:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model("gpt2", seed=1))
    for index, options in enumerate([{"whitening": "none"}, {"whitening": "fisher"}, {"across": "always"}]):
        made = fit(target, anchor, **options)
        found = Artifact.load(made.save(tmp_path / str(index)), "inferaligner")
        assert found.id == made.id
        theirs = stamp(anchor.model)
        assert found.models == {"target": stamp(target.model), "anchor": theirs, "reader": theirs}
        found.require("target", stamp(target.model))


def test_the_same_prompts_and_seed_give_the_same_artifact_whatever_their_order() -> None:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model(seed=1))
    made = fit(target, anchor)
    assert fit(target, anchor).id == made.id
    turned = fit(target, anchor, harmful=HARMFUL[::-1], harmless=[*HARMLESS[4:], *HARMLESS])
    assert turned.id == made.id
    assert fit(target, anchor, seed=1).id != made.id


def test_how_many_rows_an_engine_holds_makes_no_difference() -> None:
    tokenizer = tiny_tokenizer(290, text="Sorry, I cannot help you with that request. ")
    models = tiny_model(), tiny_model("gpt2", seed=1, tokenizer=tokenizer)
    wide = fit(*(LocalEngine(model) for model in models))
    narrow = fit(*(LocalEngine(model, max_rows=1, prefill_tokens=8) for model in models))
    assert narrow.settings == wide.settings
    for name, tensor in wide.tensors.items():
        torch.testing.assert_close(narrow.tensors[name], tensor, atol=2e-3, rtol=2e-3)


def test_progress_counts_every_prompt_on_both_models_to_the_end() -> None:
    engine, told = LocalEngine(tiny_model()), list[tuple[int, int]]()
    fit(engine, engine, harmful=[*HARMFUL, *HARMFUL], progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 32) for done in range(1, 33)]


def refusing(direction: Tensor, center: Tensor, sign: int, weights: Any) -> CausalModel:
    """A model of one block that opens with a refusal where its stream lies on one side of `center`."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["I'm sorry, but I can't help with that. "])
    with torch.no_grad():
        beside = direction - (direction @ center) / (center @ center) * center
        weights.lm_head.weight[len(tokenizer) - 1] = 100 * sign * beside
    return CausalModel.wrap(weights, tokenizer, name="refusing")


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_is_measured_by_which_way_the_refusals_lie(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "anchorlm.defenses.inferaligner._measured._PROBE_TOKENS", 1
    )  # what follows the refusal is gibberish
    weights = tiny_weights(num_hidden_layers=1)
    plain = CausalModel.wrap(weights, tiny_tokenizer())
    bad, good = streams(plain, HARMFUL)[:, 0], streams(plain, HARMLESS)[:, 0]
    engine = LocalEngine(refusing(normalize(bad.mean(dim=0) - good.mean(dim=0), dim=0), bad.mean(dim=0), sign, weights))
    made = fit(engine, engine, whitening="none")
    assert made.figures["sign"] == {
        "sign": sign,
        "refused towards": 2 if sign > 0 else 0,
        "refused away": 0 if sign > 0 else 2,
        "n": 2,
        "measured": True,
    }
    torch.testing.assert_close(made.tensors["shift.unit"], sign * made.tensors["own.unit"])
    assert made.figures["cosine with the target's own direction"] == [sign]


def test_where_nothing_is_refused_either_way_the_sign_was_not_measured() -> None:
    engine = LocalEngine(tiny_model())
    made = fit(engine, engine)
    assert made.figures["sign"] == {"sign": 1, "measured": False, "refused towards": 0, "refused away": 0, "n": 2}


def test_mistakes_are_one_sentence() -> None:
    engine = LocalEngine(tiny_model())

    def sentence(target: LocalEngine = engine, anchor: LocalEngine = engine, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            fit(target, anchor, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "7 distinct harmful prompts: give at least 8" in sentence(harmful=[*HARMFUL[:7], *HARMFUL[:3]])
    assert "0 distinct harmless prompts" in sentence(harmless=[])
    assert "1 prompt is both harmful and harmless, such as 'Burn" in sentence(harmless=[*HARMLESS, HARMFUL[2]])
    for holdout in (0, 1, -0.5, 0.95, float("nan")):
        assert "must lie above 0 and up to 0.5" in sentence(holdout=holdout)
    assert "whitening = 'zca' does not exist: choose none or fisher" in sentence(whitening="zca")
    assert "across = 'maybe' does not exist" in sentence(across="maybe")
    narrow = LocalEngine(tiny_model(hidden_size=32))
    assert "32 wide and tiny-llama is 64" in sentence(anchor=narrow, across="never")
    assert "shorten it" in sentence(harmful=[*HARMFUL, "long " * 300])
    blind = LocalEngine(tiny_model(tokenizer=tiny_tokenizer(chat_template="{{ messages[0]['role'] }}:")))
    assert "leaves out a part of this conversation" in sentence(target=blind)
    assert "leaves out a part of this conversation" in sentence(anchor=blind)
    weights = tiny_model()
    with torch.no_grad():
        weights.model.get_input_embeddings().weight.zero_()
    assert "reads harmful and harmless prompts alike" in sentence(target=LocalEngine(weights))
    broken = tiny_weights()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    assert "not numbers" in sentence(target=LocalEngine(CausalModel.wrap(broken, tiny_tokenizer())))


def test_a_reader_of_its_own_gets_the_second_gate_and_changes_nothing_else() -> None:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model(seed=1))
    reader = LocalEngine(tiny_model("gpt2", seed=2, n_layer=3))
    plain, made = fit(target, anchor, whitening="none"), fit(target, anchor, reader=reader, whitening="none")
    assert made.models["reader"] == stamp(reader.model)
    second = {name for name in plain.tensors if name.startswith("reader_")}
    assert all(torch.equal(plain.tensors[name], made.tensors[name]) for name in plain.tensors.keys() - second)
    as_anchor = fit(target, reader, across="always", whitening="none")
    assert all(torch.equal(as_anchor.tensors[name], made.tensors[name]) for name in second)
    assert as_anchor.figures["reader gate"] == made.figures["reader gate"]
    assert {name for name, value in made.settings.items() if value != plain.settings[name]} <= {"reader_gate_layers"}


def test_without_a_map_vectors_of_another_depth_are_those_at_the_same_relative_depth() -> None:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model(seed=1, num_hidden_layers=5))
    made, mapped = (fit(target, anchor, across=across, whitening="none") for across in ("never", "always"))
    t = made.tensors
    assert t["shift.unit"].shape == t["own.unit"].shape
    theirs = streams(anchor.model, HARMFUL), streams(anchor.model, HARMLESS)
    out, other = fitted_on(t["own.unit"] * t["own.length"][:, None], streams(target.model, HARMFUL),
                           streams(target.model, HARMLESS))  # fmt: skip
    kept = [[i for i in range(8) if i not in each] for each in (out, other)]
    difference = theirs[0][kept[0]].mean(dim=0) - theirs[1][kept[1]].mean(dim=0)
    places = [matching_layer(layer, 2, 5) for layer in range(2)]
    assert close(t["shift.unit"] * t["shift.length"][:, None], made.figures["sign"]["sign"] * difference[places])
    assert (made.figures["mapped"], bool(mapped.figures["mapped"])) == ([], True)


def test_digests_tell_sets_of_prompts_whatever_their_order() -> None:
    target, anchor = LocalEngine(tiny_model()), LocalEngine(tiny_model(seed=1))
    one, other = (fit(target, anchor, harmful=prompts) for prompts in (HARMFUL, [*HARMFUL[::-1], HARMFUL[0]]))
    assert one.data["harmful"]["digest"] == other.data["harmful"]["digest"]
    assert one.id == other.id
