from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchorlm.evaluation.tasks._cases import Case
from anchorlm.records import Sketches, asked, plain, shingles, sketch

NEAR = 0.7
"""Share of common word triples from which on two prompts count as one prompt in two spellings."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Overlap:
    """Prompts that a set of test prompts shares with something else.

    Attributes:
        first: Name of the other set, or of what was fitted.
        second: Name of the set of test prompts.
        equal: Prompts of the second that are in the first, up to case, spaces and punctuation.
        near: Further ones that share most of their word triples with a prompt of the first (Jaccard >= `NEAR`).
        cases: The ids of all these prompts in the second.
        examples: A few of them.
        fitted: Whether a defense was fitted on the first: then no figure counts these prompts.
        targets: For which targets that is so.
    """

    first: str
    second: str
    equal: int
    near: int
    cases: tuple[str, ...]
    examples: tuple[str, ...]
    fitted: bool = False
    targets: tuple[str, ...] = ()


def overlaps(sets: Mapping[str, Sequence[Case]], fitted: Mapping[str, Sequence[Case]] | None = None) -> list[Overlap]:
    """What the sets share, pair by pair: a defense that was fitted on its test prompts is measured on its memory.

    Args:
        sets: Test prompts by the name of their set.
        fitted: Prompts on which defenses were fitted, in the same way.

    Returns:
        The pairs that share anything. Two sets of fitting data are no pair.
    """
    names, found = list(sets), []
    pairs = [(first, own, names, True) for first, own in (fitted or {}).items()]
    pairs += [(first, sets[first], names[at + 1 :], False) for at, first in enumerate(names)]
    for first, own, others, was_fitted in pairs:
        known = {plain(asked(case.messages)) for case in own}
        index: dict[str, list[int]] = defaultdict(list)
        shingled = [shingles(text) for text in sorted(known)]
        for place, own_shingles in enumerate(shingled):
            for shingle in own_shingles:
                index[shingle].append(place)
        for second in others:
            texts = {plain(asked(case.messages)) for case in sets[second]}
            likes = {text: 1.0 if text in known else NEAR * _is_near(shingles(text), index, shingled) for text in texts}
            found += _overlap(first, second, sets[second], likes, fitted=was_fitted)
    return found


def fitted_overlaps(fitted: Mapping[str, Path], sets: Mapping[str, Sequence[Case]]) -> list[Overlap]:
    """Test prompts on which an artifact was fitted or calibrated, prompt by prompt, from the sketches that it keeps.

    Args:
        fitted: Folders of artifacts by name. Those that keep no sketches say nothing.
        sets: Test prompts by the name of their set.
    """
    found = []
    drawn = {name: {text: sketch(text) for text in {plain(asked(case.messages)) for case in cases}}
             for name, cases in sets.items()}  # fmt: skip
    first = {folder: name for name, folder in reversed(list(fitted.items()))}  # several defenses may share an artifact
    for folder, name in reversed(list(first.items())):
        known = Sketches(_kept(folder))
        for second, own in drawn.items():
            likes = {text: known.most_like(one) for text, one in own.items()}
            found += _overlap(f"the artifact of {name}", second, sets[second], likes, fitted=True)
    return found


def together(found: Mapping[str, Sequence[Overlap]]) -> list[Overlap]:
    """The overlaps of every target, those that are the same for several targets once.

    Args:
        found: By the name of the target.
    """
    targets: dict[Overlap, list[str]] = defaultdict(list)
    for target, own in found.items():
        for one in own:
            targets[one].append(target)
    return [replace(one, targets=tuple(names)) for one, names in targets.items()]


def unseen(answers: Iterable[dict[str, Any]], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answers to prompts on which nothing was fitted.

    What one defense was fitted on is left out for all of a target, so their rows stay over the same prompts.

    Args:
        answers: What `read_answers` gives.
        about: What `read_recipe` gives.
    """
    seen = {
        (target, one["second"], case)
        for one in about.get("overlaps", ())
        if one.get("fitted")
        for target in one["targets"]
        for case in one["cases"]
    }
    return [one for one in answers if (one["target"], one["data"], one["case"]) not in seen]


def _overlap(
    first: str, second: str, cases: Sequence[Case], likes: Mapping[str, float], *, fitted: bool
) -> list[Overlap]:
    """The overlap, if there is one, by how alike each text of the second is to its nearest of the first."""
    equal = [text for text, like in likes.items() if like == 1]
    near = [text for text, like in likes.items() if NEAR <= like < 1]
    if not equal and not near:
        return []
    shared = {*equal, *near}
    ids = tuple(case.id for case in cases if plain(asked(case.messages)) in shared)
    examples = tuple([*sorted(equal), *sorted(near)][:_EXAMPLES])
    return [Overlap(first, second, len(equal), len(near), ids, examples, fitted)]


def _kept(folder: Path) -> set[str]:
    """The sketches in an artifact, of fitting and of calibration."""
    try:
        data = json.loads((folder / "artifact.json").read_text("utf-8"))
    except (OSError, ValueError):
        return set()  # what is wrong with it is said where it is loaded
    found, waiting = set[str](), [data]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found.update(one["sketches"] if isinstance(one.get("sketches"), list) else ())
            waiting += [value for value in one.values() if isinstance(value, dict)]
    return found


def _is_near(
    own: frozenset[str],
    index: Mapping[str, Sequence[int]],
    shingled: Sequence[frozenset[str]],
) -> bool:
    common: dict[int, int] = defaultdict(int)
    for shingle in own:
        for place in index.get(shingle, ()):
            common[place] += 1
    return any(count >= NEAR * (len(own) + len(shingled[place]) - count) for place, count in common.items())
