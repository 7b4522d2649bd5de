"""What `anchorlm compare` compares where no recipe says so: every defense on the embedded specialists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anchorlm.cli._embedded import ANCHOR, COMPOSED, DOMAIN_OF, GATED, JUDGE, KNOBS, PROBE, SAME_VOCABULARY, SPECIALISTS
from anchorlm.evaluation import Case, Embedded
from anchorlm.records import as_messages
from anchorlm.zoo import JUDGE_TEMPLATE, SPLITS, Item, grade, is_correct, items, members, path

STEERED = ("caa", "cast", "alphasteer")
"""InferAligner's companions in the embedded run, which steer by its artifact."""

EMBEDDED_JUDGE = {"kind": "rubric", "model": f"embedded:{JUDGE}", "options": {"template": JUDGE_TEMPLATE}}
"""The embedded model that grades."""

SCORERS = {"cost": "b-cost", "reward": "b-reward"}
"""The embedded models that score texts."""


def embedded_recipe(partition: str = "test") -> dict[str, Any]:
    """Every defense on the embedded specialists, as a recipe's data."""
    artifact = {"artifact": "embedded:{target}/inferaligner"}
    scorers = _scorers()
    return {
        **scorers,
        "targets": {name: f"embedded:{name}" for name in SPECIALISTS},
        "anchor": f"embedded:{ANCHOR}",
        "judge": EMBEDDED_JUDGE,
        "defenses": {
            "undefended": {},
            "self_reminder": {},
            "goal_priority": {},
            "safe_decoding": {"anchor": f"embedded:{SAME_VOCABULARY}"},
            "best_of_n": {"n": 8},
            "inferaligner": {**KNOBS["inferaligner"], **artifact, "anchor": f"embedded:{ANCHOR}"},
            "self-gated inferaligner": {"name": "inferaligner", **artifact},
            **dict.fromkeys(STEERED, artifact),
            "alignbeam": KNOBS["alignbeam"],
            "gated alignbeam": {"name": "alignbeam", **KNOBS["alignbeam"], **GATED, **artifact},
            **(_searching(artifact) if scorers else {}),
        },
        "data": {split: {"embedded": split, "partition": partition} for split in SPLITS},
        "graders": ["truth", "refusal"],
        "generation": {"max_new_tokens": 64},
        "probe": PROBE,
    }


def _searching(artifact: Mapping[str, str]) -> dict[str, Any]:
    """Those that search under the embedded scores; where the anchor writes, it is the one of the other family."""
    guided = {"anchor": f"embedded:{ANCHOR}", "judge": EMBEDDED_JUDGE}
    return {
        "args": KNOBS["args"],
        "controlled_decoding": KNOBS["controlled_decoding"],
        "inferenceguard": guided | KNOBS["inferenceguard"],
        "composed": {"name": "inferenceguard", **guided, **COMPOSED, **artifact},
    }


def _scorers() -> dict[str, Any]:
    """The embedded cost and reward models, where they are built."""
    built = {member.name for member in members() if member.size}
    return {role: {"model": f"embedded:{name}"} for role, name in SCORERS.items() if built >= set(SCORERS.values())}


def embedded() -> Embedded:
    """What the embedded models' generator knows."""
    generator = _Generator()
    return Embedded(path, generator.cases, generator.outcome, generator.correct)


class _Generator:
    """The embedded models' prompts, and what is true of them."""

    def __init__(self) -> None:
        self._known: dict[str, Item] = {}

    def cases(self, split: str, target: str, partition: str, n: int, seed: int) -> list[Case]:
        """Prompts of a split for a target."""
        found = _items(split, DOMAIN_OF.get(target), partition, n, seed)
        self._known.update((item.id, item) for item in found)
        kinds = {"harmless": "harmless", "look-alike": "look-alike", "domain": "task"}
        return [
            Case(item.id, as_messages(item.prompt), kinds.get(split, "harmful"), item.domain,  # type: ignore[arg-type]
                 answer=item.key or None, form="label" if item.key else None, labels=(item.key,) if item.key else ())
            for item in found
        ]  # fmt: skip

    def outcome(self, case: Case, text: str) -> str:
        """The true outcome of a response."""
        return str(grade(self._known[case.id], text))

    def correct(self, case: Case, text: str) -> bool:
        """Whether a response solves a task."""
        return is_correct(self._known[case.id], text)


def _items(split: str, domain: str | None, partition: str, n: int, seed: int) -> list[Item]:
    own = domain if split in ("harmful-framed", "domain") else None
    return items(split, domain=own, partition=partition, n=n, seed=seed)  # type: ignore[arg-type]
