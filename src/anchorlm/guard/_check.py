from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Self, TypeVar

from anchorlm.defenses import Defense, DefenseSettings, find_defense
from anchorlm.guard._recipe import Recipe
from anchorlm.models import check_paths
from anchorlm.records import Access, Artifact, UserError
from anchorlm.team import Offer, Team

T = TypeVar("T")

_log = logging.getLogger("anchorlm")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A defense with its knobs, which are parsed once on the way from a recipe to a guard.

    Attributes:
        kind: The defense.
        settings: Its knobs.
    """

    kind: type[Defense]
    settings: DefenseSettings

    @classmethod
    def of(cls, defense: str | type[Defense], knobs: Mapping[str, Any]) -> Self:
        """A defense by its name or class.

        Raises:
            UserError: There is none of this name, or a knob does not fit.
        """
        kind = find_defense(defense) if isinstance(defense, str) else defense
        settings = kind.settings_type.parse(knobs, where=f"the defense {kind.name}")
        return cls(kind, settings)

    @property
    def artifacts(self) -> Iterator[tuple[str, str, str]]:
        """The artifacts that the knobs name: knob, folder and kind."""
        for name, kind in self.kind.artifacts.items():
            if isinstance(folder := getattr(self.settings, name, None), str):
                yield name, folder, kind

    def require(self, offer: Offer) -> None:
        """Whether the defense can work with these models, and its artifacts are there.

        Raises:
            UserError: Something is missing, or given for nothing.
        """
        for _, folder, kind in self.artifacts:
            Artifact.check(folder, kind)
        for gap in self.kind.needs.gaps(self.kind.name, offer):
            raise UserError(gap)

    def on(self, team: Team) -> Defense:
        """The defense on its models.

        Raises:
            UserError: They offer too little, or the defense cannot be made of them.
        """
        self.require(team.offer)
        return self.kind(team, settings=self.settings)


def faults(recipe: Recipe) -> list[tuple[str, str]]:
    """What is wrong with a recipe by itself: each part that does not fit, and a sentence with the remedy.

    No model is loaded for it, and no library that loads models. An empty list promises nothing about the models.
    """
    return _looked(recipe)[1]


def chosen(recipe: Recipe) -> Chosen:
    """The defense of a recipe in which nothing is wrong.

    Raises:
        UserError: The first fault.
    """
    found, wrong = _looked(recipe)
    for _, why in wrong:
        raise UserError(why)
    assert found is not None
    return found


def _looked(recipe: Recipe) -> tuple[Chosen | None, list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []

    def attempt(part: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except UserError as error:
            found.append((part, str(error)))
            return None

    kind = attempt("defense", lambda: find_defense(recipe.defense["name"]))
    for part, model in recipe.models:
        attempt(part, partial(check_paths, model))
    if kind is None:
        return None, found
    made = attempt("defense", lambda: Chosen.of(kind, recipe.knobs))
    for name, folder, fitted in made.artifacts if made else ():
        attempt(name, partial(Artifact.check, folder, fitted))
    roles = {role: getattr(recipe, role) for role in ("target", "anchor", "judge", "cost", "reward")}
    offer = Offer.named(**roles)
    found += [("defense", gap) for gap in kind.needs.gaps(kind.name, offer)]
    return made, found


def gaps(
    defense: type[Defense],
    *,
    target: Access,
    anchor: Access | None,
    judge: bool,
    cost: bool = False,
    reward: bool = False,
) -> list[str]:
    """`Needs.gaps` of a defense."""
    return defense.needs.gaps(defense.name, Offer(target, anchor, judge, cost, reward))


@cache
def tell_once(caveat: str) -> None:
    """Warns, but of one thing once in a process, however many guards are made of it."""
    _log.warning("%s", caveat)
