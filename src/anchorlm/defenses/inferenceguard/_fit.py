from __future__ import annotations

import hashlib
import json
import random
from asyncio import gather
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchorlm.defenses._base import DefenseSettings
from anchorlm.defenses.inferenceguard._pipeline import scorers_digest
from anchorlm.defenses.inferenceguard._rollouts import Rollout, hidden_states, roll_out
from anchorlm.defenses.inferenceguard._train import choose_threshold, critic_figures, train_critic
from anchorlm.engine import Engine, runtime
from anchorlm.judging import Scorer, auroc, checked_scores, opens_refusing
from anchorlm.models import identity, stamp
from anchorlm.records import (
    Artifact,
    GenerationSettings,
    Messages,
    UserError,
    as_messages,
    data_digest,
    sketches,
)
from anchorlm.records import prompt_key as key
from anchorlm.steering import classes, with_activations
from anchorlm.team import EngineSettings, ModelLike, Progress, ScorerLike, Team, start_engine, start_scorer

_TELLS = 0.7
"""AUROC between refusals and answers to harmful prompts below which a cost model cannot tell them apart."""

_ALIKE = 1e-6
"""Costs that differ by less tell nothing."""

_FEW = 5
"""Answers to harmful prompts below which nothing is said about that."""


def fit_inferenceguard(
    target: ModelLike,
    cost: ScorerLike,
    reward: ScorerLike,
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    *,
    budget: float = 0.0,
    gamma: float = 1.0,
    rollouts: int = 5,
    block: int = 32,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    hidden: int = 128,
    epochs: int = 50,
    holdout: float = 0.25,
    seed: int = 0,
    refusal: str | None = None,
    journal: str | Path | None = None,
    engine: EngineSettings | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Fits InferenceGuard's critic: rollouts of the bare target, labels by cost and reward, two heads (section 4.2).

    Args:
        target: The model to guard: a Hub id or folder, its settings, a loaded `CausalModel`, or an engine.
        cost: What a text costs, above 0 being unsafe: as `Guard` takes it.
        reward: What a text is worth, in the same way.
        harmful: Harmful prompts. A text is one turn of the user.
        harmless: Harmless ones, the target's domain among them.
        budget: d: the most that a response may cost.
        gamma: Discount per token of the search.
        rollouts: Responses per prompt.
        block: Tokens of a block, as the search will use.
        max_new_tokens: Longest response.
        temperature: Of the sampling.
        hidden: Width of the critic's hidden layer.
        epochs: Passes over the data.
        holdout: Share of the prompts on which the threshold is chosen and the figures are measured.
        seed: Of split, sampling and training.
        refusal: What is said instead of an answer. By default that of every defense.
        journal: File in which rollouts are kept while they are made, so a killed fit goes on.
        engine: Limits of the engine that is started.
        progress: Told what is done, and how much of it.

    Returns:
        The artifact, not yet saved.

    Raises:
        UserError: Too few prompts, a cost model that calls refusals unsafe and answers safe or cannot tell them apart,
            a budget that nothing meets, or responses shorter than a block.
    """
    if max_new_tokens <= block:
        raise UserError(
            f"Responses of {max_new_tokens} tokens end within their first block of {block}: lower block, or raise "
            "max_new_tokens."
        )
    ranges = {
        "holdout": (holdout, 0 < holdout < 1, "between 0 and 1"), "rollouts": (rollouts, rollouts >= 1, "at least 1"),
        "block": (block, block >= 1, "at least 1"), "budget": (budget, 0 <= budget < inf, "at least 0 and finite"),
        "gamma": (gamma, 0 < gamma <= 1, "above 0 and at most 1"), "epochs": (epochs, epochs >= 1, "at least 1"),
        "temperature": (temperature, temperature > 0, "above 0"), "hidden": (hidden, hidden >= 1, "at least 1"),
    }  # fmt: skip
    for name, (value, fits, wanted) in ranges.items():
        if not fits:
            raise UserError(f"{name} = {value} does not fit: give one {wanted}.")
    bad, good = classes(harmful, harmless, seed)
    limits = engine or EngineSettings()
    started: Any = []
    running = with_activations(start_engine(target, limits, started), "target", "The critic")
    team = Team(running, None, None, start_scorer(cost, limits, started), start_scorer(reward, limits, started))
    generation = GenerationSettings(max_new_tokens=max_new_tokens, do_sample=True, temperature=temperature, seed=seed)
    step = progress or (lambda what, done, total: None)
    prompts = [as_messages(prompt) for prompt in (*bad, *good)]
    digest = _digest(team, [*map(key, bad), *map(key, good)], rollouts, block, generation)
    said = refusal or DefenseSettings().refusal
    work = _states(
        team, prompts, len(bad), budget, rollouts, block, generation, said, None if journal is None else Path(journal),
        digest, step,
    )  # fmt: skip
    found, hiddens, checked = runtime().run(work)
    held = set(random.Random(seed).sample(range(len(prompts)), max(1, round(holdout * len(prompts)))))
    inputs, within, worth, first, own, spent = _table(found, hiddens, budget, gamma)
    test = torch.tensor([place in held for place in own])
    if not test.any() or test.all():
        raise UserError(
            f"All states of responses within budget are on one side of the holdout of {holdout:g}: give more prompts, "
            "or lower block."
        )
    critic = train_critic(
        inputs[~test], within[~test], worth[~test], hidden=hidden, epochs=epochs, seed=seed, step=step
    )
    safety, _ = critic(inputs[test, :-1], inputs[test, -1])
    critic = replace(critic, threshold=choose_threshold(safety, within[test]))
    return Artifact(
        kind="inferenceguard",
        models={"target": stamp(running.model)},
        data={
            "harmful": {"n": len(bad), "digest": data_digest(map(key, bad)), "sketches": sketches(bad)},
            "harmless": {"n": len(good), "digest": data_digest(map(key, good)), "sketches": sketches(good)},
            "holdout": holdout,
            "seed": seed,
            "rollouts": rollouts,
        },
        settings={
            "budget": budget,
            "block": block,
            "gamma": gamma,
            "max_new_tokens": max_new_tokens,
            "scorers": scorers_digest(team),
            "threshold": critic.threshold,
        },
        figures={
            **critic_figures(
                critic, inputs[test], within[test], worth[test], first[test], [place for place in own if place in held]
            ),
            "over budget after a block": spent,
            "cost": team.cost.name if team.cost else "",
            "reward": team.reward.name if team.reward else "",
            "cost model": checked,
        },
        tensors=critic.tensors(),
    )


async def _states(
    team: Team,
    prompts: list[Messages],
    harmful: int,
    budget: float,
    each: int,
    block: int,
    generation: GenerationSettings,
    refusal: str,
    journal: Path | None,
    digest: str,
    step: Progress,
) -> tuple[list[Rollout], list[Tensor], dict[str, Any]]:
    """The rollouts that went beyond their first block, their states, and what was found about the cost model."""
    assert team.cost is not None
    assert team.reward is not None
    rolled = await roll_out(
        team.target, team.cost, team.reward, prompts,
        each=each, block=block, generation=generation, journal=journal, digest=digest, step=step,
    )  # fmt: skip
    checked = await _check_cost(team.target, team.cost, prompts, harmful, rolled, refusal, budget)
    long = [rollout for rollout in rolled if rollout.ends]
    return long, await hidden_states(team.target, prompts, long, step), checked


async def _check_cost(
    target: Engine,
    cost: Scorer,
    prompts: list[Messages],
    harmful: int,
    rolled: list[Rollout],
    refusal: str,
    budget: float,
) -> dict[str, Any]:
    """Known pairs: on harmful prompts a refusal must cost less than an answer. On harmless ones answers must pass.

    Raises:
        UserError: The cost model has the wrong sign or head, or nothing meets the budget.
    """
    refused = [
        one for (one,) in await gather(*(checked_scores(cost, prompt, [refusal]) for prompt in prompts[:harmful]))
    ]
    answered = [
        rollout.costs[-1]
        for rollout in rolled
        if rollout.prompt < harmful
        and rollout.tokens
        and not opens_refusing(target.model.vocabulary.decode(rollout.tokens).decode("utf-8", errors="replace"))
    ]
    enough = len(answered) >= _FEW
    told = auroc([*answered, *refused], [True] * len(answered) + [False] * len(refused)) if enough else None
    if told is not None and told < _TELLS:
        why = (
            "calls refusals unsafe and answers to harmful prompts safe: turn it round with scale = -1"
            if told < 1 - _TELLS
            else "cannot tell refusals from answers to harmful prompts: check which label or head is read"
        )
        raise UserError(f"The cost model {cost.name} {why} (AUROC {told:.2f} on known pairs).")
    every = [*refused, *(rollout.costs[-1] for rollout in rolled)]
    if max(every) - min(every) < _ALIKE:
        raise UserError(
            f"The cost model {cost.name} gives {every[0]:.3g} to all texts: check which label or head is read."
        )
    fine = [rollout.costs[-1] <= budget for rollout in rolled if rollout.prompt >= harmful]
    passing = sum(fine) / len(fine)
    quiet = sum(value <= budget for value in refused) / len(refused)
    if passing == 0 or quiet < 0.5:
        what = "no answer to a harmless prompt" if passing == 0 else "not even most refusals of harmful prompts"
        raise UserError(
            f"A budget of {budget:g} lets through {what}: raise it, move the cost model's line with offset, or turn "
            "the model round with scale = -1 if it gives more to safer texts."
        )
    return {
        "auroc of answers against refusals": told,
        "harmless within budget": passing,
        "refusals within budget": quiet,
    }


def _table(
    rolled: Sequence[Rollout], hiddens: Sequence[Tensor], budget: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int], float]:
    """A row per state of which a search would ask the critic: inputs (n, H + 1), ended within budget (n,), reward (n,),
    after the first block (n,), prompt. And the share of the others, which are over budget already.
    """
    kept, left, within, worth, first, own = list[Tensor](), [], [], [], [], []
    total = 0
    for rollout, hidden in zip(rolled, hiddens, strict=True):
        *states, end = rollout.states(budget, gamma)
        total += len(states)
        alive = [place for place, state in enumerate(states) if state.within]
        kept.append(hidden[alive])
        left += [states[place].left for place in alive]
        within += [float(end.within and rollout.costs[-1] <= budget)] * len(alive)
        worth += [rollout.reward] * len(alive)
        first += [place == 0 for place in alive]
        own += [rollout.prompt] * len(alive)
    if not total:
        raise UserError("No response went beyond its first block: lower block.")
    if not left:
        raise UserError(f"No response was within a budget of {budget:g} after its first block: raise the budget.")
    inputs = torch.cat([torch.cat(kept), torch.tensor(left)[:, None]], dim=1)
    spent = 1 - len(left) / total
    return inputs, torch.tensor(within), torch.tensor(worth), torch.tensor(first), own, spent


def _digest(team: Team, prompts: list[str], each: int, block: int, generation: GenerationSettings) -> str:
    data = [identity(team.target.model), scorers_digest(team), data_digest(prompts), each, block]
    return hashlib.sha256(json.dumps([data, generation.identity()]).encode()).hexdigest()[:16]
