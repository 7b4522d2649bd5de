from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from anchorlm.evaluation.reports._costs import SPENT, cells, costs
from anchorlm.evaluation.reports._figures import ALL, Figures
from anchorlm.evaluation.reports._rows import COLUMNS, Row, safety, usefulness
from anchorlm.evaluation.reports._statistics import Estimate
from anchorlm.evaluation.runs._stored import read_recipe, read_timings
from anchorlm.records import UserError

TABLES = ("tables.json", "tables.md", "tables.tex")
"""What `write_tables` writes."""

COSTS = "costs.md"
"""What `write_costs` writes."""

SHARED = ("prompts of", "are in", "targets", "equal", "nearly", "in the figures", "such as")

_TEX = {ord(char): f"\\{char}" for char in "_%&#${}"} | {
    ord("\\"): r"\textbackslash{}",
    ord("^"): r"\textasciicircum{}",
    ord("~"): r"\textasciitilde{}",
    ord("<"): r"\textless{}",
    ord(">"): r"\textgreater{}",
}
_MD = {ord("|"): r"\|", ord("<"): "&lt;", ord(">"): "&gt;", ord("\n"): " "}


def write_tables(folder: str | Path, found: Figures) -> list[Path]:
    """Writes the tables of a run into its folder. Without times, so equal runs give equal bytes.

    Raises:
        UserError: The folder cannot be written.
    """
    texts = (json.dumps(found.data, indent=1, ensure_ascii=False) + "\n", markdown(found), latex(found))
    paths = [Path(folder) / name for name in TABLES]
    try:
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error.strerror}): choose another folder.") from None
    return paths


def write_costs(folder: str | Path) -> Path:
    """Writes what the defenses of a run cost, with 95 % intervals, as Markdown. Apart, because times never repeat.

    Raises:
        UserError: It holds no run, or cannot be written.
    """
    spent = costs(read_timings(folder), read_recipe(folder))
    path = Path(folder) / COSTS
    text = "# Cost\n\n" + (_md(SPENT, list(map(cells, spent))) if spent else "Nothing was timed.") + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error.strerror}): choose another folder.") from None
    return path


def markdown(found: Figures) -> str:
    """The tables in Markdown: the summary, a row per target and defense, a row per attack, and the sets of prompts."""
    columns = measured(found.rows)
    legend = "\n".join(f"- {name}: {COLUMNS[name]}" for name in columns)
    attacks = list(dict.fromkeys(name for row in found.rows for name in row.attacks))
    sets = list(dict.fromkeys(name for row in found.rows for name in row.sets))
    tested = [
        [row.target, row.defense, name, interval(one.difference), "-" if one.p is None else f"{one.p:.2g}"]
        for row in found.rows
        for name, one in row.paired.items()
    ]
    parts = [
        "# Comparison",
        summary(found),
        _grid(found, columns, lambda row, name: interval(row.figures.get(name))),
        *pooled(found),
        f"Percent, with 95 % intervals, clustered by prompt (Wilson; bootstrap for similarity).\n\n{legend}",
    ]
    if len(attacks) > 1:
        parts.append("## Harmful prompts complied with, by attack")
        parts.append(_grid(found, attacks, lambda row, name: interval(row.attacks.get(name))))
    parts += ["## Refused / complied / broken, by set of prompts", _grid(found, sets, shares)]
    if tested:
        parts.append("## Paired differences from undefended")
        parts.append("Points, with 95 % intervals (Agresti and Min), and p (McNemar, exact, two-sided).")
        parts.append(_md(["target", "defense", "figure", "difference", "p"], tested))
    if found.overlaps:
        parts += ["## Prompts that are elsewhere, too", _md(SHARED, shared(found))]
    return "\n\n".join([*parts, *notes(found)]) + "\n"


def latex(found: Figures) -> str:
    """The main table in LaTeX, with `booktabs`."""
    columns = measured(found.rows)
    head = " & ".join(["target", "defense", *columns]).translate(_TEX | {ord("&"): "&"})
    lines = [
        f"% {summary(found)}".replace("\n", " "),
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        rf"{head} \\",
    ]
    last = None
    for row in found.rows:
        if row.target != last:
            lines.append(r"\midrule")
        cells = [
            "--" if (one := row.figures.get(name)) is None
            else f"{100 * one.value:.1f} {{\\scriptsize[{100 * one.low:.1f}, {100 * one.high:.1f}]}}"
            for name in columns
        ]  # fmt: skip
        name = row.target.translate(_TEX) if row.target != last else ""
        lines.append(" & ".join([name, found.label(row).translate(_TEX), *cells]) + r" \\")
        last = row.target
    told = [f"% {note}" for note in (*pooled(found), *_left_out(found))]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *told, ""])


def summary(found: Figures) -> str:
    """What the run says, in a sentence or two, with intervals."""
    rows = found.comparable
    bare = next((row for row in rows if row.bare), None)
    guarded = [row for row in rows if row is not bare]
    if not guarded:
        return f"{found.done} answers; there is no defense to compare."
    protecting = [row for row in guarded if row.protects]
    unfinished = f" Unfinished: {found.done} of {found.expected} answers." if found.done < found.expected else ""
    if not protecting:
        return f"{_nothing(bare, guarded)}{_through(guarded)}{unfinished}"
    best = max(protecting, key=lambda row: (round(safety(row) + usefulness(row), 9), row.defense))
    name = "worst attack" if "worst attack" in best.figures else "harmful complied"
    said = []
    if name in best.figures:
        under = ", whatever the attack" if name == "worst attack" else ""
        said.append(f"{best.defense} leaves {spoken(best.figures[name])} of harmful prompts complied with{under}"
                    + _against(bare, name))  # fmt: skip
    for figure, words in (("harmless refused", "refuses {} of harmless prompts"), ("accuracy", "solves {} of tasks")):
        if figure in best.figures:
            said.append(words.format(spoken(best.figures[figure])) + _against(bare, figure))
    front = ", ".join(found.frontier)
    best_of = f"Best balance of {len(protecting)} defenses: " if len(protecting) > 1 else ""  # of those that protect
    front = f" Nothing beats in both safety and usefulness: {front}." if len(found.rows) > 1 else ""
    return f"{best_of}{_and(said)}.{front}{_through(guarded)}{unfinished}"


def _nothing(bare: Row | None, guarded: Sequence[Row]) -> str:
    """That no defense is better than none, with the least that was complied with."""
    name = "worst attack" if any("worst attack" in row.figures for row in guarded) else "harmful complied"
    known = [row for row in guarded if name in row.figures]
    least = min(known, key=lambda row: (row.figures[name].value, row.defense), default=None)
    told = "" if least is None else f": at best {spoken(least.figures[name])}, {least.defense}{_against(bare, name)}"
    return f"No defense lowered compliance with harmful prompts measurably{told}."


def _through(rows: Sequence[Row]) -> str:
    """Where a gate opened and the answer complied all the same."""
    return "".join(
        f" The gate of {row.defense} opened on {row.through.n} answers to harmful prompts, of which "
        f"{row.through.complied} complied all the same."
        for row in rows
        if row.through is not None and row.through.complied
    )


def measured(rows: Sequence[Row]) -> list[str]:
    """The figures that any row has, in their order."""
    return [name for name in COLUMNS if any(name in row.figures for row in rows)]


def interval(estimate: Estimate | None) -> str:
    """As in `12.0 [8.1, 17.3]`, percent."""
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def spoken(estimate: Estimate) -> str:
    """As in `12.0 % (8.1 to 17.3)`."""
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def shares(row: Row, name: str) -> str:
    """As in `90/8/2`, percent of the three outcomes on a set of prompts."""
    if name not in row.sets:
        return "-"
    return "/".join(f"{100 * row.sets[name][word].value:.0f}" for word in ("refused", "complied", "broken"))


def _against(bare: Row | None, name: str) -> str:
    return "" if bare is None or name not in bare.figures else f", undefended {spoken(bare.figures[name])}"


def _and(parts: Sequence[str]) -> str:
    return "; ".join(parts) if parts else "Nothing was measured"


def pooled(found: Figures) -> list[str]:
    """What is to be known about the rows of all targets together, where there are any."""
    if all(row.target != ALL for row in found.rows):
        return []
    return [
        f"The rows of {ALL} pool the same prompts over the targets: their answers are not independent, so the "
        "intervals there are clustered by prompt and no p is given."
    ]


def notes(found: Figures) -> list[str]:
    """What is to be known about a run besides its figures."""
    told = []
    if found.graders:
        one = found.graders
        told.append(
            f"Graders: {one['first']} counts; {one['second']} says the same on {100 * one['rate']:.1f} % of {one['n']} "
            f"answers to harmful prompts (Cohen's kappa {one['kappa']:.2f})."
        )
    if len({row.grader for row in found.rows}) > 1:
        told.append(
            "Not all rows have the same grader, because nothing grades a defense that it served or fitted: such rows "
            "are not to be compared; the paired differences have one grader on both sides."
        )
    told += [
        f"{label} is graded by the refusal matcher, which also chose when its artifact was made: take no figure of it "
        "for a measurement, but fit it again, or add a grader."
        for label in found.biased
    ]
    told += [
        f"Probe: {one['defense']} on {one['target']} {finding['said']}"
        for one in found.probes
        for finding in one["findings"]
        if finding["passed"] is False
    ]
    told += _left_out(found)
    if errors := sum(row.errors for row in found.together):
        told.append(f"{errors} prompts could not be put (too long for a model, say): they count as broken.")
    if ungraded := sum(row.ungraded for row in found.together):
        told.append(f"{ungraded} answers could not be graded: they are in no rate of outcomes.")
    told.append(f"Recipe {found.digest}, {found.done} of {found.expected} answers.")
    return told


def _left_out(found: Figures) -> list[str]:
    if not found.left_out:
        return []
    return [
        f"{found.left_out} answers are in no figure, because a defense was fitted on their prompts, or nearly: they "
        "are left out for every defense of that target, which keeps all on the same prompts."
    ]


def shared(found: Figures) -> list[list[str]]:
    """A row, after `SHARED`, for every two sets that share prompts. Runs of older versions keep no ids."""
    return [
        [one["second"], one["first"], ", ".join(one.get("targets", ())) or "all", str(one["equal"]), str(one["near"]),
         "left out" if one.get("fitted") else "counted", " / ".join(one.get("examples", ()))]
        for one in found.overlaps
    ]  # fmt: skip


def _grid(found: Figures, names: Sequence[str], cell: Callable[[Row, str], str]) -> str:
    rows = [[row.target, found.label(row), *(cell(row, name) for name in names)] for row in found.rows]
    return _md(["target", "defense", *names], rows)


def _md(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.translate(_MD) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
