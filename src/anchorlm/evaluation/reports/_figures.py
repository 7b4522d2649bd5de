from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anchorlm.evaluation.reports._rows import Record, Row, case_of, row_of, safety, usefulness
from anchorlm.evaluation.reports._statistics import agreement, pareto
from anchorlm.evaluation.runs._exclusion import MATCHER
from anchorlm.evaluation.runs._overlaps import unseen
from anchorlm.evaluation.runs._stored import read_answers, read_probes, read_recipe
from anchorlm.evaluation.tasks._attacks import attack_label
from anchorlm.records import as_messages, plain, turn_text

ALL = "all targets"
"""The row in which all targets are counted together."""

UNDEFENDED = "undefended"


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that the tables of a run say. The same for the same recipe and seed.

    Attributes:
        rows: A row per target and defense. Those of all targets together last.
        frontier: Defenses that no other with the same grader beats in both safety and usefulness.
        graders: Agreement of the first two graders on harmful prompts, and where they differ.
        done: Answers that are there.
        expected: Answers that there will be.
        digest: Of the recipe.
        overlaps: Prompts that two sets share, or on which a defense was fitted.
        probes: What each guard did when it was tried, by target and defense.
        biased: Defenses that the refusal matcher grades although their artifacts were made with it.
        left_out: Answers that are in no figure, because something was fitted on their prompts.
    """

    rows: Sequence[Row]
    frontier: Sequence[str]
    graders: Mapping[str, Any]
    done: int
    expected: int
    digest: str
    overlaps: Sequence[Mapping[str, Any]]
    probes: Sequence[Mapping[str, Any]] = ()
    biased: Sequence[str] = ()
    left_out: int = 0

    @property
    def data(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)

    @property
    def together(self) -> list[Row]:
        """The rows of all targets together, or of the only one."""
        last = self.rows[-1].target if self.rows else ALL
        return [row for row in self.rows if row.target == last]

    @property
    def comparable(self) -> list[Row]:
        """Of these, those with the grader of most defenses: what two graders say is no difference of defenses."""
        graders = Counter(row.grader for row in self.together if not row.bare)
        most = graders.most_common(1)[0][0] if graders else None
        return [row for row in self.together if most in (None, row.grader)]

    def label(self, row: Row) -> str:
        """What a table calls a row: its defense, and who graded it where that is not the same in all rows."""
        same = len({one.grader for one in self.rows}) == 1
        return row.defense if same else f"{row.defense} (graded by {row.grader})"


def figures(folder: str | Path) -> Figures:
    """What a run found, from its folder alone.

    Raises:
        UserError: It holds no run.
    """
    about, given = read_recipe(folder), read_answers(folder)
    answers = _asked(unseen(given, about))
    seed = int(about["recipe"]["seed"])
    labels = [one["label"] for one in about["defenses"]]
    bare = next((one["label"] for one in about["defenses"] if one["defense"] == UNDEFENDED), None)
    targets = list(about["recipe"]["targets"])
    # As the recipe has them, whatever the order in which answers came.
    attacks = map(attack_label, about["recipe"]["attacks"])
    order = {name: n for n, name in enumerate([*about["recipe"]["data"], *attacks])}
    answers.sort(key=lambda one: (order.get(one["data"], 0), order.get(one["attack"], 0)))
    by_row: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in answers:
        by_row[record["target"], record["defense"]].append(record)
        by_row[ALL, record["defense"]].append(record)
    rows = [
        replace(
            row_of(target, label, by_row[target, label], by_row[target, bare] if bare and label != bare else [], seed),
            bare=label == bare,
        )
        for target in ([*targets, ALL] if len(targets) > 1 else targets)
        for label in labels
        if by_row[target, label]
    ]
    found = Figures(
        rows, (), _graders(answers), len(given), int(about["expected"]), about["digest"], about.get("overlaps", ()),
        left_out=len(given) - len(answers),
    )  # fmt: skip
    points: dict[Hashable, tuple[float, float]] = {
        row.defense: (safety(row), usefulness(row)) for row in found.comparable
    }
    frontier = [str(name) for name in pareto(points)] if points else []
    return replace(found, frontier=frontier, probes=read_probes(folder), biased=_biased(about, rows))


def _biased(about: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Labels of defenses that are graded by what chose for them: runs of older versions let that happen.

    A run that does not say with what artifacts were made is one of these: InferAligner's were with the refusal matcher.
    """
    known = about.get("instruments")
    made = {
        one["label"]: (
            MATCHER in known.get(one["label"], ()) if known is not None else "artifact" in one.get("knobs", {})
        )
        for one in about["defenses"]
    }
    graded = {row.defense for row in rows if "refusal" in row.grader.split(", ")}
    return [label for label, chose in made.items() if chose and label in graded]


def _graders(answers: Sequence[Record]) -> dict[str, Any]:
    """How far the first two graders agree on harmful prompts, and some answers on which they do not.

    Elsewhere a judge of harm has nothing to say, and does as the refusal matcher does.
    """
    graded = [
        (record, tuple(name for name, word in record["grades"].items() if word != "ungraded")[:2])
        for record in answers
        if record["kind"] == "harmful"
    ]
    pairs = Counter(names for _, names in graded if len(names) == 2)
    if not pairs:
        return {}
    first, second = pairs.most_common(1)[0][0]
    both = [record for record, names in graded if names == (first, second)]
    found = agreement([record["grades"][first] for record in both], [record["grades"][second] for record in both])
    differ = [record for record in both if record["grades"][first] != record["grades"][second]]
    examples = [
        {"prompt": record["prompt"][-1]["content"], "text": record["text"]}
        | {first: record["grades"][first], second: record["grades"][second]}
        for record in differ[:20]
    ]
    return {"first": first, "second": second, **asdict(found), "differ": len(differ), "examples": examples}


def _asked(answers: Sequence[dict[str, Any]]) -> list[Record]:
    """The answers, each with the prompt that was put without an attack: in whichever set, it is one prompt."""
    texts = {
        case_of(one): " | ".join(plain(turn_text(turn)) for turn in as_messages(one["prompt"]))
        for one in answers
        if one["attack"] == "none"
    }
    return [one | {"asked": texts.get(case_of(one)) or f"{one['data']} {one['case']}"} for one in answers]
