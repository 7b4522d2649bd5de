from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TypeVar

from anchorlm.defenses import Defense, find_defense
from anchorlm.guard._recipe import Recipe
from anchorlm.models import EndpointSettings, ModelSettings, check_paths
from anchorlm.records import Access, UserError

T = TypeVar("T")

_log = logging.getLogger("anchorlm")


def faults(recipe: Recipe) -> list[tuple[str, str]]:
    """What is wrong with a recipe by itself: each part that does not fit, and a sentence with the remedy.

    No model is loaded for it, and no library that loads models. An empty list promises nothing about the models.
    """
    found: list[tuple[str, str]] = []

    def attempt(part: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except UserError as error:
            found.append((part, str(error)))
            return None

    defense = attempt("defense", lambda: find_defense(recipe.defense["name"]))
    for part, model in recipe.models:
        attempt(part, partial(check_paths, model))
    if defense is not None:
        attempt("defense", lambda: defense.settings_type.parse(recipe.knobs, where=f"the defense {defense.name}"))
        missing = gaps(
            defense,
            target=_reach(recipe.target),
            anchor=_reach(recipe.anchor) if recipe.anchor else None,
            judge=recipe.judge is not None,
            cost=recipe.cost is not None,
            reward=recipe.reward is not None,
            remedies={
                role: f"give the {role}'s tokenizer with tokenizer"
                for role, model in (("target", recipe.target), ("anchor", recipe.anchor))
                if isinstance(model, EndpointSettings) and model.tokenizer is None
            },
        )
        found += [("defense", gap) for gap in missing]
    return found


def _reach(model: ModelSettings) -> Access:
    """How much of a model can be had at most, before anybody has asked its server."""
    if not isinstance(model, EndpointSettings):
        return Access.ACTIVATIONS
    return Access.TEXT if model.tokenizer is None else Access.LOGPROBS


def gaps(
    defense: type[Defense],
    *,
    target: Access,
    anchor: Access | None,
    judge: bool,
    cost: bool = False,
    reward: bool = False,
    remedies: Mapping[str, str] | None = None,
    continues: bool = True,
) -> list[str]:
    """What stands between a defense and its models: one sentence each, with the remedy; none if it can work.

    Args:
        defense: The defense.
        target: How much of the target the engine offers.
        anchor: How much of the anchor; None if there is none.
        judge: Whether there is a judge.
        cost: Whether there is a cost model.
        reward: Whether there is a reward model.
        remedies: How target or anchor can give their log-probabilities, where they are behind an endpoint.
        continues: Whether the target can go on with an answer that has begun.
    """
    needs, name, found = defense.needs, defense.name, []
    remedies = remedies or {}

    def remedy(role: str, needed: Access) -> str:
        named = remedies.get(role, "") if needed <= Access.LOGPROBS else ""
        return named or f"load the {role} with transformers"

    if target < needs.target:
        found.append(
            f"{name} uses the target's {needs.target.name.lower()}, but its engine offers {target.name.lower()}: "
            f"{remedy('target', needs.target)}."
        )
    elif needs.continues and not continues:
        found.append(
            f"{name} goes on with answers that have begun, and the target's server cannot: give the target's tokenizer "
            "with tokenizer, or load the target with transformers."
        )
    if needs.requires("anchor") and anchor is None:
        found.append(f"{name} is guided by an anchor: give a small aligned model as anchor.")
    elif needs.anchor is None and anchor is not None:
        found.append(f"{name} has no use for an anchor: leave it out, or choose a defense such as alignbeam.")
    elif needs.anchor is not None and anchor is not None and anchor < needs.anchor:
        found.append(
            f"{name} uses the anchor's {needs.anchor.name.lower()}, but its engine offers {anchor.name.lower()}: "
            f"{remedy('anchor', needs.anchor)}."
        )
    if needs.requires("judge") and not judge:
        found.append(f"{name} picks the safest of several candidates: give a judge.")
    elif judge and not needs.judge:
        found.append(f"{name} has no use for a judge: leave it out.")
    for kind, needed, given in (("cost", needs.cost, cost), ("reward", needs.reward, reward)):
        if needed and not given:
            found.append(f"{name} decides by a {kind} model: give one as {kind}.")
        elif given and not needed:
            found.append(
                f"{name} has no use for a {kind} model: leave it out, or choose a defense such as inferenceguard."
            )
    return found


def require(
    defense: type[Defense],
    *,
    target: Access,
    anchor: Access | None,
    judge: bool,
    cost: bool = False,
    reward: bool = False,
    remedies: Mapping[str, str] | None = None,
    continues: bool = True,
) -> None:
    """Raises the first gap.

    Raises:
        UserError: Something is missing, or given for nothing.
    """
    for gap in gaps(
        defense,
        target=target,
        anchor=anchor,
        judge=judge,
        cost=cost,
        reward=reward,
        remedies=remedies,
        continues=continues,
    ):
        raise UserError(gap)


@cache
def tell_once(caveat: str) -> None:
    """Warns, but of one thing once in a process, however many guards are made of it."""
    _log.warning("%s", caveat)
