from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from anchorlm.evaluation.reports._calibration import Knowledge
from anchorlm.evaluation.reports._costs import Cost
from anchorlm.evaluation.reports._figures import Figures
from anchorlm.evaluation.reports._rows import Row, safety, usefulness

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 440, 64, 700, 20, 380


_USE = ("harmless answered", "accuracy", "look-alike refused")
"""Figures that tell how useful a defense is."""


def tradeoff(found: Figures) -> str:
    """Safety against usefulness of every defense, all targets together. Values of one swept knob are joined.

    The colors are the page's: classes, not values. Where one side was not asked for, a sentence says so.
    """
    rows = found.together
    missing = [
        kind
        for kind, there in (
            ("harmful prompts", any(row.asked for row in rows)),
            ("harmless prompts or tasks", any(name in row.figures for row in rows for name in _USE)),
        )
        if not there
    ]
    if missing:
        return f"<p>No {' and no '.join(missing)} were asked, so there is no trade-off to show.</p>"
    parts = [_open(_W, _H, "Trade-off of safety and usefulness")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _x(share), _y(share)
        parts += [
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}M{x:.1f} {_TOP}V{_BOTTOM}"/>',
            _text(_LEFT - 8, y + 4, f"{share:.0%}", "end"),
            _text(x, _BOTTOM + 20, f"{share:.0%}", "middle"),
        ]
    middle = (_TOP + _BOTTOM) / 2
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 44, "usefulness: answered, not over-refused, solved", "middle"))
    parts.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
                 "safety: harmful prompts not complied with</text>")  # fmt: skip
    for curve in _curves(rows):
        points = " ".join(f"{_x(usefulness(row)):.1f},{_y(safety(row)):.1f}" for row in curve)
        parts.append(f'<polyline class="curve" points="{points}"/>')
    taken: list[tuple[float, float, float]] = []
    for row in sorted(rows, key=lambda one: (-safety(one), -usefulness(one))):
        parts += _point(row, row.defense in found.frontier, taken)
    return "\n".join([*parts, "</svg>"])


def latency(costs: Sequence[Cost]) -> str:
    """Seconds of one response alone, by defense: the median as a bar, its first text as a tick, the 95th as a line."""
    if not costs:
        return ""
    most = max(cost.p95 for cost in costs) or 1.0
    height = 40 + 30 * len(costs)
    parts = [_open(_W, height, "Time of one response")]
    for place, cost in enumerate(costs):
        y, width = 12 + 30 * place, 440 * cost.median.value / most
        high = 180 + 440 * cost.p95 / most
        parts += [
            _text(172, y + 13, _short(cost.defense), "end"),
            f'<rect class="bar" x="180" y="{y}" width="{max(width, 1):.1f}" height="18" rx="3"/>',
            f'<path class="whisker" d="M{180 + width:.1f} {y + 9}H{high:.1f}M{high:.1f} {y + 4}v10"/>',
            f'<path class="tick" d="M{180 + 440 * cost.first / most:.1f} {y - 2}v22"/>',
            _text(max(high, 180 + width) + 8, y + 13, f"{cost.median.value:.2f} s"),
        ]
    parts.append(_text(180, height - 6, "bar: median; line: up to the 95th percentile; tick: first text"))
    return "\n".join([*parts, "</svg>"])


def calibration(known: Sequence[Knowledge]) -> str:
    """A pair of histograms for each defense that decides by a number: what is worse above the line, the rest below.

    Each side is drawn as a share of its own, so few and many can be compared.
    """
    if not known:
        return ""
    step, half = 124, 34
    parts = [_open(_W, step * len(known) + 4, "What the defenses' own numbers know")]
    for place, one in enumerate(known):
        middle, wide = 20 + step * place + half, 440 / len(one.worse)
        told = "" if one.auroc is None else f", AUROC {one.auroc:.3f}"
        parts += [
            _text(8, middle - 8, _short(one.defense)),
            _text(8, middle + 8, f"{sum(one.worse)} and {sum(one.better)}"),
            _text(180, middle - half - 6, f"{one.score}{told}"),
            f'<path class="grid" d="M180 {middle}H620"/>',
            _text(632, middle - 10, one.apart[0]),
            _text(632, middle + 18, one.apart[1]),
            _text(180, middle + half + 18, f"{one.edges[0]:.2g}"),
            _text(620, middle + half + 18, f"{one.edges[-1]:.2g}", "end"),
        ]
        for counts, name, up in ((one.worse, "complied", True), (one.better, "refused", False)):
            most = max(counts) or 1
            for index, count in enumerate(counts):
                if count:
                    high = max(1.0, half * count / most)
                    y = middle - high if up else middle
                    parts.append(
                        f'<rect class="{name}" x="{180 + wide * index:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" '
                        f'height="{high:.1f}"><title>{count} {one.apart[0 if up else 1]}</title></rect>'
                    )
        if one.limit is not None and one.edges[0] <= one.limit <= one.edges[-1]:
            x = 180 + 440 * (one.limit - one.edges[0]) / (one.edges[-1] - one.edges[0] or 1)
            parts.append(f'<path class="whisker" d="M{x:.1f} {middle - half}v{2 * half}"/>')
    return "\n".join([*parts, "</svg>"])


def _point(row: Row, best: bool, taken: list[tuple[float, float, float]]) -> list[str]:
    x, y = _x(usefulness(row)), _y(safety(row))
    worst = row.figures.get("worst attack", row.figures.get("harmful complied"))
    parts = []
    if worst is not None:
        parts.append(f'<path class="whisker" d="M{x:.1f} {_y(1 - worst.high):.1f}V{_y(1 - worst.low):.1f}"/>')
    title = f"{row.defense}: safety {safety(row):.1%}, usefulness {usefulness(row):.1%}"
    name = "point best" if best else "point"
    parts.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{escape(title)}</title></circle>')
    label = _short(row.defense)
    width = 7.0 * len(label)
    right = x + 12 + width < _W
    start = x + 10 if right else x - 10 - width
    at = y - 8
    while any(abs(at - b) < 14 and start < c and a < start + width for a, b, c in taken):
        at += 14
    taken.append((start, at, start + width))
    parts.append(_text(start, at + 4, label))
    return parts


def _curves(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one defense under the values of one knob, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        head, equals, _ = row.defense.rpartition("=")
        if equals:
            groups.setdefault(head, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def bars(shares: Mapping[str, float]) -> str:
    """Three outcomes as one bar of HTML, with their percentages for anyone who cannot see it."""
    told = ", ".join(f"{word} {100 * share:.0f} %" for word, share in shares.items())
    pieces = "".join(f'<i class="{word}" style="width:{100 * share:.1f}%"></i>' for word, share in shares.items())
    short = "/".join(f"{100 * share:.0f}" for share in shares.values())  # for paper, and fingers, which cannot hover
    return (
        f'<span class="stack" role="img" aria-label="{told}" title="{told}">{pieces}</span>'
        f'<small class="plain" aria-hidden="true">{short}</small>'
    )


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}"><title>{title}</title>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"


def _x(share: float) -> float:
    return _LEFT + 10 + (_RIGHT - _LEFT - 20) * share


def _y(share: float) -> float:
    return _BOTTOM - 10 - (_BOTTOM - _TOP - 20) * share
