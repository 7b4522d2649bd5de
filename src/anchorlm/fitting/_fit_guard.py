from __future__ import annotations

import hashlib
import json
import random
from asyncio import gather
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchorlm.defenses import DefenseSettings, Team, scorers_digest
from anchorlm.engine import Engine, runtime
from anchorlm.fitting._critic import auroc, choose_threshold, critic_figures, train_critic
from anchorlm.fitting._prompts import classes
from anchorlm.fitting._rollouts import Rollout, Step, hidden_states, roll_out
from anchorlm.guard import EngineSettings, ModelLike, ScorerLike, start_engine, start_scorer
from anchorlm.judging import RefusalMatcher, Scorer, checked_scores
from anchorlm.models import stamp
from anchorlm.records import Access, Artifact, GenerationSettings, Messages, UserError, as_messages, data_digest
from anchorlm.records import prompt_key as key

_TELLS = 0.7
"""AUROC between refusals and answers to harmful prompts below which a cost model cannot tell them apart."""

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
    progress: Step | None = None,
) -> Artifact:
    """Fits InferenceGuard's critic: rollouts of the bare target, labels by cost and reward, two heads (section 4.2).

    Args:
        target: The model to guard: a Hub id or folder, its settings, a loaded `CausalModel`, or an engine.
        cost: What a text costs, above 0 being unsafe: as `Guard` takes it.
        reward: What a text is worth, likewise.
        harmful: Harmful prompts; a text is one turn of the user.
        harmless: Harmless ones, the target's domain among them.
        budget: d: the most that a response may cost.
        rollouts: Responses per prompt.
        block: Tokens of a block, as the search will use.
        max_new_tokens: Longest response.
        temperature: Of the sampling.
        hidden: Width of the critic's hidden layer.
        epochs: Passes over the data.
        holdout: Share of the prompts on which the threshold is chosen and the figures are measured.
        seed: Of split, sampling and training.
        refusal: What is said instead of an answer; by default that of every defense.
        journal: File in which rollouts are kept while they are made, so that a killed fit goes on.
        engine: Limits of the engine that is started.
        progress: Told what is done, and how much of it.

    Returns:
        The artifact, not yet saved.

    Raises:
        UserError: Too few prompts, a cost model that calls refusals unsafe and answers safe or cannot tell them apart,
            a budget that nothing meets, or responses shorter than a block.
    """
    if not 0 < holdout < 1 or rollouts < 1 or block < 1 or max_new_tokens <= block or budget < 0:
        raise UserError(
            "A fit needs a holdout between 0 and 1, at least one rollout, a budget of at least 0, and max_new_tokens "
            "above the tokens of a block: change what does not fit."
        )
    bad, good = classes(harmful, harmless, seed)
    limits = engine or EngineSettings()
    started: Any = []
    running = start_engine(target, limits, started)
    if running.access < Access.ACTIVATIONS:
        raise UserError("The critic reads the target's activations: load the target with transformers.")
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
    inputs, within, worth, first, own = _table(found, hiddens, budget)
    test = torch.tensor([place in held for place in own])
    if not test.any() or test.all():
        raise UserError("Too few responses went beyond their first block: lower block, or give more prompts.")
    critic = train_critic(
        inputs[~test], within[~test], worth[~test], hidden=hidden, epochs=epochs, seed=seed, step=step
    )
    safety, _ = critic(inputs[test, :-1], inputs[test, -1])
    critic = replace(critic, threshold=choose_threshold(safety, within[test]))
    return Artifact(
        kind="inferenceguard",
        models={"target": stamp(running.model)},
        data={
            "harmful": {"n": len(bad), "digest": data_digest(map(key, bad))},
            "harmless": {"n": len(good), "digest": data_digest(map(key, good))},
            "holdout": holdout,
            "seed": seed,
            "rollouts": rollouts,
        },
        settings={
            "budget": budget,
            "block": block,
            "gamma": 1.0,  # rollouts are not discounted
            "max_new_tokens": max_new_tokens,
            "scorers": scorers_digest(team),
            "threshold": critic.threshold,
        },
        figures={
            **critic_figures(critic, inputs[test], within[test], worth[test], first[test]),
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
    step: Step,
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
    """Known pairs: on harmful prompts a refusal must cost less than an answer; on harmless ones answers must pass.

    Raises:
        UserError: The cost model has the wrong sign or head, or nothing meets the budget.
    """
    refused = [
        one for (one,) in await gather(*(checked_scores(cost, prompt, [refusal]) for prompt in prompts[:harmful]))
    ]
    matcher = RefusalMatcher()
    answered = [
        rollout.costs[-1]
        for rollout in rolled
        if rollout.prompt < harmful
        and rollout.tokens
        and not matcher.is_refusal(target.model.vocabulary.decode(rollout.tokens).decode("utf-8", errors="replace"))
    ]
    told = auroc([*answered, *refused], [True] * len(answered) + [False] * len(refused))
    if told is not None and len(answered) >= _FEW and told < _TELLS:
        why = (
            "calls refusals unsafe and answers to harmful prompts safe: turn it round with scale = -1"
            if told < 1 - _TELLS
            else "cannot tell refusals from answers to harmful prompts: check which label or head is read"
        )
        raise UserError(f"The cost model {cost.name} {why} (AUROC {told:.2f} on known pairs).")
    fine = [rollout.costs[-1] <= budget for rollout in rolled if rollout.prompt >= harmful]
    passing = sum(fine) / len(fine)
    quiet = sum(value <= budget for value in refused) / len(refused)
    if passing == 0 or quiet < 0.5:
        what = "no answer to a harmless prompt" if passing == 0 else "not even most refusals of harmful prompts"
        raise UserError(
            f"A budget of {budget:g} lets through {what}: raise it, or move the cost model's line with offset."
        )
    return {
        "auroc of answers against refusals": told,
        "harmless within budget": passing,
        "refusals within budget": quiet,
    }


def _table(
    rolled: Sequence[Rollout], hiddens: Sequence[Tensor], budget: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """A row per state: inputs (n, H + 1), ended within budget (n,), reward (n,), after the first block (n,), prompt."""
    left, within, worth, first, own = [], [], [], [], []
    for rollout in rolled:
        *states, end = rollout.states(budget)
        left += [state.left for state in states]
        within += [float(end.within)] * len(states)
        worth += [rollout.reward] * len(states)
        first += [place == 0 for place in range(len(states))]
        own += [rollout.prompt] * len(states)
    if not left:
        raise UserError("No response went beyond its first block: lower block.")
    inputs = torch.cat([torch.cat(list(hiddens)), torch.tensor(left)[:, None]], dim=1)
    return inputs, torch.tensor(within), torch.tensor(worth), torch.tensor(first), own


def _digest(team: Team, prompts: list[str], each: int, block: int, generation: GenerationSettings) -> str:
    known = stamp(team.target.model)
    data = [known.tokenizer, known.sample, scorers_digest(team), data_digest(prompts), each, block]
    return hashlib.sha256(json.dumps([data, generation.model_dump()]).encode()).hexdigest()[:16]
