from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES, heard, tiny_model
from torch import Tensor
from torch.nn.functional import logsigmoid

from anchorlm.defenses import REControlSettings
from anchorlm.defenses._re_control import Ascent
from anchorlm.defenses.inferenceguard import Critic
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.models import stamp
from anchorlm.records import Artifact, UserError

PROMPTS = ["Burn down my house!", "How do I bake bread?", "x", "Ünïcode, 12 + 30 = ?"]
BUDGET = 1.5
KNOBS: dict[str, Any] = {"steps": 4, "rate": 2.0, "weight": 0.7}


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def noisy_critic(width: int) -> Critic:
    """Of random weights, strong enough to move a random model's choices."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Critic(
        noise(width + 1), noise(width + 1).abs() + 0.5, noise(16, width + 1), noise(16), noise(2, 16), noise(2),
        torch.tensor([3.0, 2.0]), 0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def critic(target: LocalEngine) -> Critic:
    return noisy_critic(target.model.text_config.hidden_size)


@pytest.fixture(scope="module")
def folder(target: LocalEngine, critic: Critic, tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = {"threshold": 0.5, "budget": BUDGET, "block": 3, "gamma": 1.0, "scorers": "none"}
    made = Artifact("inferenceguard", {"target": stamp(target.model)}, {}, settings, {}, critic.tensors())
    return str(made.save(tmp_path_factory.mktemp("re_control")))


def guard(target: LocalEngine, folder: str, **knobs: Any) -> Guard:
    return Guard(target, "re_control", critic=folder, generation={"max_new_tokens": 12}, **{**KNOBS, **knobs})


def naive_climb(critic: Critic, state: Tensor, steps: int, rate: float, weight: float) -> Tensor:
    """The paper's ascent on one state (H,), by automatic differentiation."""
    x = ((torch.cat([state, torch.tensor([BUDGET])]) - critic.mean) / critic.scale).detach()
    for _ in range(steps):
        x.requires_grad_()
        safety, worth = critic.logits(x[None])[0]
        (gradient,) = torch.autograd.grad(worth + weight * logsigmoid(safety), x)
        x = x.detach() + rate * torch.cat([gradient[:-1], torch.zeros(1)])
    return (x * critic.scale + critic.mean)[:-1]


def test_an_ascent_is_that_of_automatic_differentiation(critic: Critic) -> None:
    states = torch.randn(3, len(critic.mean) - 1, generator=torch.Generator().manual_seed(1))
    settings = REControlSettings(critic="-", steps=3, rate=0.1, weight=0.7)
    moved = states + Ascent(critic, BUDGET, settings).climb(states)
    want = [naive_climb(critic, state, 3, 0.1, 0.7) for state in states]
    assert torch.allclose(moved, torch.stack(want), atol=1e-3)
    left = torch.full((3,), BUDGET)
    assert (critic(moved, left)[1] > critic(states, left)[1]).all()


def test_each_token_is_chosen_by_the_last_state_after_its_climb(
    target: LocalEngine, critic: Critic, folder: str
) -> None:
    model = target.model
    plain = Guard(target, generation={"max_new_tokens": 12})
    moved = guard(target, folder)
    changed = 0
    for prompt in PROMPTS:
        ids = list(model.encode(said(prompt)))
        start, kept = len(ids), list[torch.Tensor]()
        handle = model.blocks[-1].register_forward_hook(lambda m, i, output, kept=kept: kept.append(output))
        try:
            while len(ids) < start + 12 and not model.stop_ids & set(ids[start:]):
                with torch.inference_mode():
                    model.model(torch.tensor([ids]), use_cache=False)
                state = naive_climb(critic, kept[-1][0, -1].clone(), **KNOBS)
                logits = model.model.lm_head(model.model.model.norm(state))
                ids.append(int(heard(model, logits).argmax()))
        finally:
            handle.remove()
        response = moved.chat(said(prompt))
        assert list(response.token_ids) == [token for token in ids[start:] if token not in model.stop_ids]
        changed += response.token_ids != plain.chat(said(prompt)).token_ids
    assert changed


@pytest.mark.parametrize("knobs", [{"steps": 0}, {"rate": 0}])
def test_no_step_is_the_undefended_target(target: LocalEngine, folder: str, knobs: dict[str, Any]) -> None:
    plain, still = Guard(target, generation={"max_new_tokens": 12}), guard(target, folder, **knobs)
    for prompt in PROMPTS:
        assert still.chat(said(prompt)).token_ids == plain.chat(said(prompt)).token_ids


def test_batched_is_one_at_a_time_and_streamed_is_whole(target: LocalEngine, folder: str) -> None:
    one = guard(target, folder)
    together = one.generate(PROMPTS)
    for prompt, response in zip(PROMPTS, together, strict=True):
        assert one.chat(prompt).token_ids == response.token_ids
        assert "".join(event.text for event in one.stream(prompt) if hasattr(event, "text")) == response.text


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_edited_after_its_last_block(architecture: str, tmp_path: Path) -> None:
    engine = LocalEngine(tiny_model(architecture))
    settings = {"threshold": 0.5, "budget": BUDGET, "block": 3, "gamma": 1.0, "scorers": "none"}
    weights = noisy_critic(engine.model.text_config.hidden_size).tensors()
    made = Artifact("inferenceguard", {"target": stamp(engine.model)}, {}, settings, {}, weights)
    folder = str(made.save(tmp_path))
    plain = Guard(engine, generation={"max_new_tokens": 12})
    together = guard(engine, folder).generate(PROMPTS)
    assert [one.token_ids for one in together] == [guard(engine, folder).chat(p).token_ids for p in PROMPTS]
    assert [one.token_ids for one in together] != [plain.chat(prompt).token_ids for prompt in PROMPTS]


def test_mistakes_are_one_sentence(target: LocalEngine, folder: str) -> None:
    with pytest.raises(UserError, match="other weights"):
        guard(LocalEngine(tiny_model(seed=3)), folder)
    with pytest.raises(UserError, match="anchorlm fit inferenceguard"):
        guard(target, folder + "/nowhere")
    with pytest.raises(UserError, match="critic"):
        Guard(target, "re_control")
    with pytest.raises(UserError, match="critic cannot differ between requests"):
        guard(target, folder).request(said("x"), {"critic": "another"})
