from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anchorlm.records import Messages, UserError, prompt_key
from anchorlm.steering._sets import GIVEN, PromptSets

LEAST = 8
"""Fewest distinct prompts of a class that anything is fitted or chosen on."""

Named = dict[str, list[Messages | str]]
"""Prompts by the name of their set."""


@dataclass(frozen=True, slots=True)
class Split:
    """Prompts by class, those that fit and, by the name of their set, those that are held out to measure. And all of
    them as they were given.
    """

    harmful: list[Messages | str]
    harmless: list[Messages | str]
    held_harmful: dict[str, list[Messages | str]]
    held_harmless: dict[str, list[Messages | str]]
    given: tuple[Named, Named]

    @property
    def size(self) -> int:
        """How many prompts there are."""
        held = [prompts for sets in (self.held_harmful, self.held_harmless) for prompts in sets.values()]
        return len(self.harmful) + len(self.harmless) + sum(map(len, held))


def split_prompts(
    harmful: Sequence[Messages | str],
    harmless: Sequence[Messages | str],
    sets: PromptSets,
    holdout: float,
    seed: int,
) -> Split:
    """Holds out a share of the distinct prompts of every set.

    Raises:
        UserError: A share that leaves nothing, too few prompts, or one that is in both classes.
    """
    if not 0 < holdout <= 0.5:
        raise UserError(f"holdout = {holdout} must lie above 0 and up to 0.5: it is the share that measures only.")
    found = _distinct({GIVEN: harmful, **sets.harmful}), _distinct({GIVEN: harmless, **sets.harmless})
    _check_enough(*(own[GIVEN] for own in found))
    _check_apart(*found)
    one, other = map(_listed, found)
    (bad, held_bad), (good, held_good) = (_held(own, holdout, seed) for own in (one, other))
    return Split(bad, good, held_bad, held_good, (one, other))


def distinct_sets(
    harmful: Mapping[str, Sequence[Messages | str]], harmless: Mapping[str, Sequence[Messages | str]]
) -> tuple[Named, Named]:
    """The prompts of each set, each once. One that is in several sets of a class stays in the first.

    Raises:
        UserError: A prompt is in both classes.
    """
    found = _distinct(harmful), _distinct(harmless)
    _check_apart(*found)
    return _listed(found[0]), _listed(found[1])


def classes(
    harmful: Sequence[Messages | str], harmless: Sequence[Messages | str], seed: int = 0
) -> tuple[list[Messages | str], list[Messages | str]]:
    """The distinct prompts of both classes, shuffled.

    Raises:
        UserError: Too few of a class, or a prompt that is in both.
    """
    found = _distinct({GIVEN: harmful}), _distinct({GIVEN: harmless})
    _check_enough(*(own[GIVEN] for own in found))
    _check_apart(*found)
    shuffled = [[own[GIVEN][key] for key in sorted(own[GIVEN])] for own in found]
    for members in shuffled:
        random.Random(seed).shuffle(members)
    return shuffled[0], shuffled[1]


Keyed = Mapping[str, Messages | str]
"""Prompts by their key."""


def _check_enough(harmful: Keyed, harmless: Keyed) -> None:
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        if len(prompts) < LEAST:
            some = f"There are only {len(prompts)}" if len(prompts) > 1 else f"There is only {len(prompts)}"
            raise UserError(f"{some} distinct {name} prompts: give at least {LEAST}, better 64 or more.")


def _check_apart(harmful: Mapping[str, Keyed], harmless: Mapping[str, Keyed]) -> None:
    if overlap := {key for own in harmful.values() for key in own} & {key for own in harmless.values() for key in own}:
        count = "1 prompt is" if len(overlap) == 1 else f"{len(overlap)} prompts are"
        raise UserError(f"{count} both harmful and harmless, such as {min(overlap)[:80]!r}: correct the files.")


def _listed(sets: Mapping[str, Mapping[str, Messages | str]]) -> Named:
    return {name: list(own.values()) for name, own in sets.items()}


def _distinct(sets: Mapping[str, Sequence[Messages | str]]) -> dict[str, dict[str, Messages | str]]:
    """The prompts of each set by their key."""
    known: set[str] = set()
    found: dict[str, dict[str, Messages | str]] = {}
    for name, prompts in sets.items():
        own = {key: prompt for prompt in prompts if (key := prompt_key(prompt)) not in known}
        known |= own.keys()
        if own or name == GIVEN:
            found[name] = own
    return found


def _held(sets: Named, holdout: float, seed: int) -> tuple[list[Messages | str], Named]:
    kept: list[Messages | str] = []
    held: Named = {}
    for name, prompts in sets.items():
        unique = sorted(prompts, key=prompt_key)
        random.Random(seed).shuffle(unique)
        cut = max(min(2, len(unique)), round(len(unique) * holdout))
        kept += unique[cut:]
        held[name] = unique[:cut]
    return kept, held
