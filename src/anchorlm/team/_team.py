from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from anchorlm.models import UNREAD, VLLM_ACCESS, EndpointSettings, VLLMSettings
from anchorlm.records import Access

if TYPE_CHECKING:
    from anchorlm.engine import Engine
    from anchorlm.judging import Judge, Scorer


@dataclass(frozen=True, slots=True)
class Offer:
    """What the models around a guard can give, whether they are loaded or only named.

    Attributes:
        target: How much of the target is within reach.
        anchor: How much of the anchor. None if there is none.
        judge: Whether there is a judge.
        cost: Whether there is a cost model.
        reward: Whether there is a reward model.
        target_lacks: How a target on another server could give its log-probabilities.
        anchor_lacks: The same of the anchor.
        target_unread: How a target in another process could give its activations.
        anchor_unread: The same of the anchor.
        continues: Whether the target can go on with an answer that has begun.
    """

    target: Access
    anchor: Access | None = None
    judge: bool = False
    cost: bool = False
    reward: bool = False
    target_lacks: str = ""
    anchor_lacks: str = ""
    target_unread: str = ""
    anchor_unread: str = ""
    continues: bool = True

    @classmethod
    def named(cls, *, anchor: object, judge: object, cost: object, reward: object, target: object = None) -> Offer:
        """Of models that are only named: that everything of them is within reach is believed until they are loaded."""
        named = {"judge": judge is not None, "cost": cost is not None, "reward": reward is not None}
        (own, lacks, unread), (other, misses, closed) = _reach(target), _reach(anchor)
        return cls(own, None if anchor is None else other, **named, target_lacks=lacks, anchor_lacks=misses,
                   target_unread=unread, anchor_unread=closed)  # fmt: skip


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
            getattr(self.target, "lacks", ""),
            getattr(self.anchor, "lacks", ""),
            getattr(self.target, "unread", ""),
            getattr(self.anchor, "unread", ""),
            getattr(self.target, "continues", True),
        )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a defense cannot do without.

    Attributes:
        target: How much of the target it uses.
        anchor: How much of an anchor it uses. None if it has no use for one.
        judge: Whether it needs a judge.
        cost: Whether it needs a cost model.
        reward: Whether it needs a reward model.
        optional: Which of `anchor` and `judge` it can also do without.
        continues: Whether the target must be able to go on with an answer that has begun.
    """

    target: Access = Access.TEXT
    anchor: Access | None = None
    judge: bool = False
    cost: bool = False
    reward: bool = False
    optional: tuple[str, ...] = ()
    continues: bool = False

    def requires(self, role: Literal["anchor", "judge"]) -> bool:
        """Whether it cannot work without an anchor, or without a judge."""
        return getattr(self, role) not in (None, False) and role not in self.optional

    def gaps(self, name: str, offer: Offer) -> list[str]:
        """What stands between a defense and its models: one sentence each, with the remedy. None if it can work.

        Args:
            name: Of the defense.
            offer: What the models can give.
        """
        found = []
        if self.target not in offer.target:
            found.append(_short(name, "target", self.target, offer.target, offer.target_lacks, offer.target_unread))
        elif self.continues and not offer.continues:
            found.append(
                f"{name} goes on with answers that have begun, and the target's server cannot: give the target's "
                "tokenizer with tokenizer, or load the target with transformers."
            )
        found += self._of_anchor(name, offer.anchor, offer.anchor_lacks, offer.anchor_unread)
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

    def _of_anchor(self, name: str, given: Access | None, lacks: str, unread: str) -> list[str]:
        if self.requires("anchor") and given is None:
            return [f"{name} is guided by an anchor: give a small aligned model as anchor."]
        if self.anchor is None and given is not None:
            return [f"{name} has no use for an anchor: leave it out, or choose a defense such as alignbeam."]
        if self.anchor is not None and given is not None and self.anchor not in given:
            return [_short(name, "anchor", self.anchor, given, lacks, unread)]
        return []


def _reach(model: object) -> tuple[Access, str, str]:
    """How much of a model can be had at most, and how its log-probabilities and its activations, before it is asked."""
    if isinstance(model, VLLMSettings) or (isinstance(model, Mapping) and "engine" in model):
        activations = model.activations if isinstance(model, VLLMSettings) else model.get("activations", False)
        return VLLM_ACCESS[bool(activations)], "", "" if activations else UNREAD
    if isinstance(model, EndpointSettings):
        tokenizer = model.tokenizer
    elif isinstance(model, Mapping) and "endpoint" in model:
        tokenizer = model.get("tokenizer")
    else:
        return Access.ALL, "", ""
    if tokenizer is None:
        return Access.TEXT, "give the tokenizer of the model on the server with tokenizer", ""
    return Access.LOGPROBS, "", ""


def _short(name: str, role: str, wanted: Access, offered: Access, lacks: str, unread: str) -> str:
    """What is said of a model whose engine offers too little."""
    remedies = {Access.LOGPROBS: lacks, Access.ACTIVATIONS: unread}
    remedy = remedies.get(wanted) or f"load the {role} with transformers"
    return f"{name} uses the {role}'s {wanted.words}, but its engine offers {offered.words}: {remedy}."
