from __future__ import annotations

import logging
from functools import cache

from anchorlm.defenses import Defense
from anchorlm.records import Access, UserError

_log = logging.getLogger("anchorlm")


def gaps(
    defense: type[Defense],
    *,
    target: Access,
    anchor: Access | None,
    judge: bool,
    cost: bool = False,
    reward: bool = False,
) -> list[str]:
    """What stands between a defense and its models: one sentence each, with the remedy; none if it can work.

    Args:
        defense: The defense.
        target: How much of the target the engine offers.
        anchor: How much of the anchor; None if there is none.
        judge: Whether there is a judge.
        cost: Whether there is a cost model.
        reward: Whether there is a reward model.
    """
    needs, name, found = defense.needs, defense.name, []
    if target < needs.target:
        found.append(
            f"{name} uses the target's {needs.target.name.lower()}, but its engine offers {target.name.lower()}: "
            "load the target with transformers."
        )
    if needs.requires("anchor") and anchor is None:
        found.append(f"{name} is guided by an anchor: give a small aligned model as anchor.")
    elif needs.anchor is None and anchor is not None:
        found.append(f"{name} has no use for an anchor: leave it out, or choose a defense such as alignbeam.")
    elif needs.anchor is not None and anchor is not None and anchor < needs.anchor:
        found.append(
            f"{name} uses the anchor's {needs.anchor.name.lower()}, but its engine offers {anchor.name.lower()}: "
            "load the anchor with transformers."
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
) -> None:
    """Raises the first gap.

    Raises:
        UserError: Something is missing, or given for nothing.
    """
    for gap in gaps(defense, target=target, anchor=anchor, judge=judge, cost=cost, reward=reward):
        raise UserError(gap)


@cache
def tell_once(caveat: str) -> None:
    """Warns, but of one thing once in a process, however many guards are made of it."""
    _log.warning("%s", caveat)
