from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from anchorlm.records import Access

if TYPE_CHECKING:
    from anchorlm.engine import Engine
    from anchorlm.judging import Judge, Scorer


@dataclass(frozen=True, slots=True)
class Offer:
    """What the models around a guard can give, whether they are loaded or only named.

    Attributes:
        target: How much of the target is within reach.
        anchor: How much of the anchor; None if there is none.
        judge: Whether there is a judge.
        cost: Whether there is a cost model.
        reward: Whether there is a reward model.
    """

    target: Access
    anchor: Access | None = None
    judge: bool = False
    cost: bool = False
    reward: bool = False

    @classmethod
    def named(cls, *, anchor: object, judge: object, cost: object, reward: object) -> Offer:
        """Of models that are only named: that everything of them is within reach is believed until they are loaded."""
        most = Access.ACTIVATIONS
        named = {"judge": judge is not None, "cost": cost is not None, "reward": reward is not None}
        return cls(most, None if anchor is None else most, **named)


@dataclass(frozen=True, slots=True)
class Team:
    """The models around one guard."""

    target: Engine
    anchor: Engine | None = None
    judge: Judge | None = None
    cost: Scorer | None = None
    reward: Scorer | None = None

    @property
    def offer(self) -> Offer:
        """What these models can give."""
        return Offer(
            self.target.access,
            None if self.anchor is None else self.anchor.access,
            self.judge is not None,
            self.cost is not None,
            self.reward is not None,
        )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a defense cannot do without.

    Attributes:
        target: How much of the target it uses.
        anchor: How much of an anchor it uses; None if it has no use for one.
        judge: Whether it needs a judge.
        cost: Whether it needs a cost model.
        reward: Whether it needs a reward model.
        optional: Which of `anchor` and `judge` it can also do without.
    """

    target: Access = Access.TEXT
    anchor: Access | None = None
    judge: bool = False
    cost: bool = False
    reward: bool = False
    optional: tuple[str, ...] = ()

    def requires(self, role: Literal["anchor", "judge"]) -> bool:
        """Whether it cannot work without an anchor, or without a judge."""
        return getattr(self, role) not in (None, False) and role not in self.optional

    def gaps(self, name: str, offer: Offer) -> list[str]:
        """What stands between a defense and its models: one sentence each, with the remedy; none if it can work.

        Args:
            name: Of the defense.
            offer: What the models can give.
        """
        found = []
        if offer.target < self.target:
            found.append(_short(name, "target", self.target, offer.target))
        found += self._of_anchor(name, offer.anchor)
        if self.requires("judge") and not offer.judge:
            found.append(f"{name} picks the safest of several candidates: give a judge.")
        elif offer.judge and not self.judge:
            found.append(f"{name} has no use for a judge: leave it out.")
        for kind, needed, given in (("cost", self.cost, offer.cost), ("reward", self.reward, offer.reward)):
            if needed and not given:
                found.append(f"{name} decides by a {kind} model: give one as {kind}.")
            elif given and not needed:
                found.append(
                    f"{name} has no use for a {kind} model: leave it out, or choose a defense such as inferenceguard."
                )
        return found

    def _of_anchor(self, name: str, given: Access | None) -> list[str]:
        if self.requires("anchor") and given is None:
            return [f"{name} is guided by an anchor: give a small aligned model as anchor."]
        if self.anchor is None and given is not None:
            return [f"{name} has no use for an anchor: leave it out, or choose a defense such as alignbeam."]
        if self.anchor is not None and given is not None and given < self.anchor:
            return [_short(name, "anchor", self.anchor, given)]
        return []


def _short(name: str, role: str, wanted: Access, offered: Access) -> str:
    """What is said of a model whose engine offers too little."""
    return (
        f"{name} uses the {role}'s {wanted.name.lower()}, but its engine offers {offered.name.lower()}: load the "
        f"{role} with transformers."
    )
