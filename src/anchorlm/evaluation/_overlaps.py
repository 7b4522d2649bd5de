from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchorlm.evaluation._cases import Case
from anchorlm.records import likeness, plain, sketch

NEAR = 0.7
"""Share of common word triples from which on two prompts count as one prompt in two spellings."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Prompts that two sets of prompts share.

    Attributes:
        first: Name of a set.
        second: Name of the other.
        equal: Prompts of the second that are in the first, up to case, spaces and punctuation.
        near: Further ones that share most of their word triples with a prompt of the first (Jaccard >= `NEAR`).
        example: One of them.
    """

    first: str
    second: str
    equal: int
    near: int
    example: str


def overlaps(sets: Mapping[str, Sequence[Case]]) -> list[Overlap]:
    """What the sets share, pair by pair: a defense that was fitted on its test prompts is measured on its memory.

    Args:
        sets: Prompts by the name of their set, fitting data first.

    Returns:
        The pairs that share anything.
    """
    names, found = list(sets), []
    for position, first in enumerate(names):
        known = {plain(case.prompt) for case in sets[first]}
        index: dict[tuple[str, ...], list[int]] = defaultdict(list)
        shingled = [_shingles(text) for text in sorted(known)]
        for place, shingles in enumerate(shingled):
            for shingle in shingles:
                index[shingle].append(place)
        for second in names[position + 1 :]:
            equal, near, example = 0, 0, ""
            for text in sorted({plain(case.prompt) for case in sets[second]}):
                if text in known:
                    equal += 1
                elif _is_near(_shingles(text), index, shingled):
                    near += 1
                else:
                    continue
                example = example or text
            if equal or near:
                found.append(Overlap(first, second, equal, near, example))
    return found


def fitted_overlaps(fitted: Mapping[str, Path], sets: Mapping[str, Sequence[Case]]) -> list[Overlap]:
    """Test prompts on which an artifact was fitted or calibrated, prompt by prompt, from the sketches that it keeps.

    Args:
        fitted: Folders of artifacts by name; those that keep no sketches say nothing.
        sets: Test prompts by the name of their set.
    """
    found = []
    drawn = {name: {text: sketch(text) for text in sorted({plain(case.prompt) for case in cases})}
             for name, cases in sets.items()}  # fmt: skip
    first = {folder: name for name, folder in reversed(list(fitted.items()))}  # several defenses may share an artifact
    for folder, name in reversed(list(first.items())):
        known = _kept(folder)
        for second, own in drawn.items():
            best = {text: max((likeness(one, other) for other in known), default=0.0) for text, one in own.items()}
            equal, near = ([text for text in best if hit(best[text])] for hit in (lambda v: v == 1, _nearly))
            if equal or near:
                found.append(Overlap(f"the artifact of {name}", second, len(equal), len(near), (equal or near)[0]))
    return found


def _nearly(likeness: float) -> bool:
    return NEAR <= likeness < 1


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


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = text.split()
    return frozenset(tuple(words[i : i + 3]) for i in range(len(words) - 2))


def _is_near(
    shingles: frozenset[tuple[str, ...]],
    index: Mapping[tuple[str, ...], Sequence[int]],
    shingled: Sequence[frozenset[tuple[str, ...]]],
) -> bool:
    common: dict[int, int] = defaultdict(int)
    for shingle in shingles:
        for place in index.get(shingle, ()):
            common[place] += 1
    return any(count >= NEAR * (len(shingles) + len(shingled[place]) - count) for place, count in common.items())
