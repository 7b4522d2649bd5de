from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anchorlm.defenses.inferenceguard._critic import Critic
from anchorlm.judging import auroc
from anchorlm.records import clustered
from anchorlm.team import Progress

_BINS = 10
_BATCH = 64


def train_critic(
    inputs: Tensor,
    within: Tensor,
    reward: Tensor,
    *,
    hidden: int = 128,
    epochs: int = 50,
    rate: float = 1e-3,
    seed: int = 0,
    step: Progress,
) -> Critic:
    """Trains both heads: binary cross-entropy on "ended within budget", squared error on the final reward.

    Args:
        inputs: Last hidden state and budget left (n, H + 1).
        within: 1 where the response ended within budget (n,).
        reward: Of the whole response (n,).
        hidden: Width of the hidden layer.
        epochs: Passes over the data.
        rate: Peak learning rate.
        seed: Of initial weights and order.
        step: Told what is done.
    """
    mean, scale = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-6)
    worth = torch.stack([reward.mean(), reward.std().clamp_min(1e-6) if len(reward) > 1 else torch.ones(())])
    generator = torch.Generator().manual_seed(seed)
    width = inputs.shape[1]
    weights = {
        "weight": torch.randn(hidden, width, generator=generator) / width**0.5,
        "bias": torch.zeros(hidden),
        "heads": torch.randn(2, hidden, generator=generator) / hidden**0.5,
        "heads_bias": torch.zeros(2),
    }
    for weight in weights.values():
        weight.requires_grad_()
    critic = Critic(mean=mean, scale=scale, reward=worth, threshold=0.5, **weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=0.01)
    x, y = (inputs - mean) / scale, (reward - worth[0]) / worth[1]
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - epoch / epochs)
        order = torch.randperm(len(x), generator=generator)
        for rows in (order[start : start + _BATCH] for start in range(0, len(x), _BATCH)):
            logits = critic.logits(x[rows])
            loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], within[rows])
            loss = loss + nn.functional.mse_loss(logits[:, 1], y[rows])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        step("Training the critic", epoch + 1, epochs)
    return replace(critic, **{name: weight.detach() for name, weight in weights.items()})


def choose_threshold(safety: Tensor, within: Tensor) -> float:
    """The probability from which on responses go on: the middle of those with the best balanced accuracy.

    Where one of the classes is empty nothing can be chosen, and 0.5 it is.

    Args:
        safety: Predicted on held-out states (n,).
        within: Whether they ended within budget (n,), as 0 and 1.
    """
    yes = within > 0.5
    if yes.all() or not yes.any():
        return 0.5
    grid = torch.linspace(0.02, 0.98, 97)
    on = safety[:, None] >= grid
    balanced = (on[yes].float().mean(dim=0) + (~on[~yes]).float().mean(dim=0)) / 2
    best = (balanced >= balanced.max() - 1e-6).nonzero()[:, 0]
    return round(float(grid[best[len(best) // 2]]), 4)


def reliability(safety: Tensor, within: Tensor, prompts: Sequence[int]) -> list[dict[str, Any]]:
    """What became of states to which the critic gave about equal chances: a row per tenth that is not empty.

    Args:
        safety: Predicted (n,).
        within: Whether they ended within budget (n,), as 0 and 1.
        prompts: Of which prompt each state is: those of one prompt are not independent, and the intervals know it.
    """
    rows = []
    place = (safety * _BINS).long().clamp_max(_BINS - 1)
    for index in range(_BINS):
        members = place == index
        if n := int(members.sum()):
            groups: dict[int, list[bool]] = defaultdict(list)
            for at in members.nonzero()[:, 0].tolist():
                groups[prompts[at]].append(bool(within[at] > 0.5))
            low, high = clustered(groups.values())
            said, hits = round(float(safety[members].mean()), 4), sum(map(sum, groups.values()))
            rows.append({"said": said, "ended": hits / n, "low": low, "high": high, "n": n, "prompts": len(groups)})
    return rows


def critic_figures(
    critic: Critic, inputs: Tensor, within: Tensor, reward: Tensor, first: Tensor, prompts: Sequence[int]
) -> dict[str, Any]:
    """What the critic is worth on held-out states.

    Args:
        critic: With its threshold.
        inputs: Last hidden state and budget left (n, H + 1).
        within: 1 where the response ended within budget (n,).
        reward: Of the whole response (n,).
        first: Whether the state follows the first block (n,).
        prompts: Of which prompt each state is.
    """
    safety, worth = critic(inputs[:, :-1], inputs[:, -1])
    yes = within > 0.5
    spread = float(((reward - reward.mean()) ** 2).mean())
    return {
        "states": len(inputs),
        "prompts": len(set(prompts)),
        "ended within budget": float(within.mean()),
        "auroc": auroc(safety, yes),
        "auroc after the first block": auroc(safety[first], yes[first]),
        "auroc after the first block of the budget left": auroc(inputs[first, -1], yes[first]),
        "states after the first block": int(first.sum()),
        "reward explained": 1 - float(((worth - reward) ** 2).mean()) / spread if spread > 0 else None,
        "threshold": critic.threshold,
        "kept within budget": float((safety[yes] >= critic.threshold).float().mean()) if yes.any() else None,
        "kept over budget": float((safety[~yes] >= critic.threshold).float().mean()) if not yes.all() else None,
        "reliability": reliability(safety, within, prompts),
    }
