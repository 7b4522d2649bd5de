from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from anchorlm.evaluation.reports._calibration import knowledge
from anchorlm.evaluation.reports._costs import SPENT, Cost, cells, costs
from anchorlm.evaluation.reports._figures import Figures, figures
from anchorlm.evaluation.reports._plots import bars, calibration, latency, tradeoff
from anchorlm.evaluation.reports._rows import COLUMNS, SMALLER_IS_BETTER, Row, outcome
from anchorlm.evaluation.reports._statistics import Estimate, Paired
from anchorlm.evaluation.reports._tables import SHARED, interval, measured, notes, pooled, shared, summary
from anchorlm.evaluation.runs._overlaps import unseen
from anchorlm.evaluation.runs._stored import read_answers, read_machine, read_recipe, read_timings
from anchorlm.records import UserError

REPORT = "report.html"

_ROOM = 2_000_000
"""Bytes of transcripts that a report holds. The whole file stays below three megabytes."""


def write_report(folder: str | Path) -> Path:
    """Writes a run's report into its folder: one HTML file that needs no network.

    Raises:
        UserError: The folder holds no run, or cannot be written.
    """
    path = Path(folder) / REPORT
    text = report(folder)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}): free the place.") from None
    return path


def report(folder: str | Path) -> str:
    """A run's report as HTML.

    Raises:
        UserError: The folder holds no run.
    """
    about, found = read_recipe(folder), figures(folder)
    spent = costs(read_timings(folder), about)
    answers = read_answers(folder)
    chosen = _transcripts(answers)
    parts = {
        "summary": escape(summary(found)),
        "table": _table(found),
        "notes": "".join(f'<p class="soft">{escape(note)}</p>' for note in (*pooled(found), *notes(found))),
        "overlaps": _overlaps(found),
        "legend": "".join(f"<dt>{name}</dt><dd>{escape(COLUMNS[name])}</dd>" for name in measured(found.rows)),
        "tradeoff": tradeoff(found),
        "attacks": _attacks(found),
        "sets": _sets(found),
        "latency": latency(spent),
        "costs": _costs(spent),
        "calibration": calibration(knowledge(unseen(answers, about)))
        or "<p>None of these defenses decides by a number.</p>",
        "graders": _graders(found),
        "shown": f"{len(chosen)} of {len(answers)} answers",
        "about": _about(about, read_machine(folder), found),
        "data": _embedded(chosen),
    }
    page = files("anchorlm.evaluation").joinpath("report.html").read_text("utf-8")
    head, *pieces = page.split("<!--put:")
    return head + "".join(parts[name] + rest for name, rest in (piece.split("-->", 1) for piece in pieces))


def _transcripts(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As many answers as there is room for, evenly from all cells. Those that complied with harm come first."""
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for one in answers:
        cells[one["target"], one["defense"], one["data"], one["attack"]].append(one)
    for cell in cells.values():
        cell.sort(key=lambda one: not (one["kind"] == "harmful" and outcome(one) == "complied"))
    chosen, room, depth = [], _ROOM, 0
    while room > 0 and any(len(cell) > depth for cell in cells.values()):
        for cell in cells.values():
            if len(cell) > depth:
                one = _transcript(cell[depth])
                size = len(_embedded(one).encode())
                if size <= room:  # one with a trace of a megabyte leaves room for the others
                    chosen.append(one)
                    room -= size
        depth += 1
    return chosen


def _embedded(data: Any) -> str:
    """JSON inside a script element, which a "<" could end."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _transcript(one: Mapping[str, Any]) -> dict[str, Any]:
    names = ("target", "defense", "data", "attack", "case", "prompt", "text", "finish", "queries", "grades", "trace")
    kept = {name: one[name] for name in names}
    return kept | {name: one[name] for name in ("correct", "error") if name in one} | {"outcome": outcome(one)}


def _table(found: Figures) -> str:
    columns = measured(found.rows)
    head = "".join(f"<th scope=col>{name}</th>" for name in columns)
    rows, last = [], None
    for row in found.rows:
        start = ' class="first"' if row.target != last else ""
        star = " <b title='Nothing beats it in both safety and usefulness.'>★</b>" if (
            row.target == found.rows[-1].target and row.defense in found.frontier) else ""  # fmt: skip
        cells = "".join(
            _cell(row.figures.get(name), name in SMALLER_IS_BETTER, row.paired.get(name)) for name in columns
        )
        rows.append(
            f"<tr{start}><td>{escape(row.target)}</td><th scope=row>{escape(found.label(row))}{star}</th>{cells}</tr>"
        )
        last = row.target
    return f"<table><thead><tr><th>target</th><th>defense</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(one: Estimate | None, smaller_is_better: bool, paired: Paired | None = None) -> str:
    if one is None:
        return "<td>–</td>"
    bad = one.value if smaller_is_better else 1 - one.value
    title = f"n = {one.n}" + (f", {one.prompts} distinct prompts" if one.prompts != one.n else "")
    if paired is not None:
        title += f"; against undefended, paired: {interval(paired.difference)} points"
        title += "" if paired.p is None else f", p = {paired.p:.2g}"
    return (
        f'<td class="n" style="--bad:{100 * bad:.0f}%" title="{title}">{100 * one.value:.1f}'
        f"<small>{100 * one.low:.1f}–{100 * one.high:.1f}</small></td>"
    )


def _attacks(found: Figures) -> str:
    names = list(dict.fromkeys(name for row in found.rows for name in row.attacks))
    if not names:
        return "<p>No harmful prompts were asked.</p>"
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th scope=row>{escape(found.label(row))}</th>"
        + "".join(_cell(row.attacks.get(name), True) for name in names)
        + "</tr>"
        for row in found.together
    )
    return f'<table class="heat"><thead><tr><th>defense</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _sets(found: Figures) -> str:
    names = list(dict.fromkeys(name for row in found.rows for name in row.sets))
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th scope=row>{escape(found.label(row))}</th>"
        + "".join(f"<td>{_bar(row, name)}</td>" for name in names)
        + "</tr>"
        for row in found.together
    )
    return f'<table class="sets"><thead><tr><th>defense</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _bar(row: Row, name: str) -> str:
    return bars({word: one.value for word, one in row.sets[name].items()}) if name in row.sets else "–"


def _costs(spent: Sequence[Cost]) -> str:
    if not spent:
        return "<p>Nothing was timed.</p>"
    head = "".join(f"<th scope=col>{name}</th>" for name in SPENT[1:])
    rows = "".join(
        f"<tr><th scope=row>{escape(one.defense)}</th>"
        + "".join(f'<td class="n plain">{cell}</td>' for cell in cells(one)[1:])
        + "</tr>"
        for one in spent
    )
    return f"<table><thead><tr><th>defense</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _overlaps(found: Figures) -> str:
    if not found.overlaps:
        return ""
    head = "".join(f"<th scope=col>{name}</th>" for name in SHARED)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shared(found))
    return (
        "<details open><summary>Prompts that are elsewhere, too</summary><div class=wide><table><thead><tr>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _graders(found: Figures) -> str:
    if not found.graders:
        return "<p>One grader graded: there is nothing to compare it with.</p>"
    one = found.graders
    first, second = escape(one["first"]), escape(one["second"])
    told = (
        f"<p><b>{first}</b> counts. <b>{second}</b> says the same on {100 * one['rate']:.1f} % of {one['n']} answers "
        f"(Cohen's kappa {one['kappa']:.2f}); they differ on {one['differ']}.</p>"
    )
    examples = "".join(
        f"<li><q>{escape(str(each['prompt'])[:300])}</q><br>{escape(each['text'][:300]) or '<i>(nothing)</i>'}<br>"
        f"<small>{first}: {each[one['first']]}, {second}: {each[one['second']]}</small></li>"
        for each in one["examples"]
    )
    return f"{told}<details><summary>Some of them</summary><ol>{examples}</ol></details>" if examples else told


def _about(about: Mapping[str, Any], machine: Mapping[str, Any], found: Figures) -> str:
    shown = {
        "digest of the recipe": about["digest"],
        "answers": f"{found.done} of {found.expected}",
        "recipe": about["recipe"],
        "data": about["data"],
        "overlaps": about.get("overlaps", []),
        **machine,
    }
    return "".join(
        f"<dt>{escape(name)}</dt><dd><pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre></dd>"
        if isinstance(value, dict | list)
        else f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in shown.items()
    )
