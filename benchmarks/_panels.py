"""The ablation's picture: outcomes over the strength, a column per target, a row per outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2
from typing import Any

from anchorlm.defenses.inferaligner._picture import GRAY, words

_COLUMN, _ROW, _LEFT, _TOP, _WIDE, _HIGH = 360, 200, 62, 64, 280, 140
_KINDS = (("anchor", "the anchor's", "#2f8f6b", ""), ("own", "the target's own", "#8f7cc4", "6 4"),
          ("random", "random, three seeds", "#c9703a", "2 3"))  # fmt: skip
_ROWS = (("refused", "refused cleanly"), ("broken", "broken text"))


def panels(data: Mapping[str, Any]) -> str:
    """SVG with a transparent background, in colors that are readable on light and dark."""
    targets = data["targets"]
    width, height = _COLUMN * len(targets) + 20, _TOP + _ROW * len(_ROWS) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{GRAY}">',
        "<title>InferAligner: whose vectors refuse</title>",
        words(_LEFT, 24, "Whose vectors refuse, at equal norms", size=17),
    ]
    for column, (name, target) in enumerate(targets.items()):
        left = _LEFT + column * _COLUMN
        parts.append(words(left, 48, f"{name} ({target['what']})"))
        for row, (outcome, label) in enumerate(_ROWS):
            top = _TOP + row * _ROW
            parts += _panel(left, top, target, outcome, label if column == 0 else "")
    for index, (_, label, color, dash) in enumerate((*_KINDS, ("", "undefended", GRAY, "1 4"))):
        x, y = _LEFT + (0, 170, 350, 550)[index], height - 12
        parts.append(f'<path d="M{x} {y - 4}h28" stroke="{color}" stroke-width="2.5"{_dashed(dash)}/>')
        parts.append(words(x + 36, y, label))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, top: int, target: Mapping[str, Any], outcome: str, label: str) -> list[str]:
    bottom = top + _HIGH
    points = target["curves"]["anchor"]["points"]
    alphas = [point["alpha"] for point in points]
    low, high = log2(alphas[0]), log2(alphas[-1])

    def x(alpha: float) -> float:
        return left + 12 + (_WIDE - 24) * (log2(alpha) - low) / (high - low)

    def y(share: float) -> float:
        return bottom - _HIGH * share

    parts = []
    for share in (0.0, 0.5, 1.0):
        parts.append(f'<path d="M{left} {y(share):.1f}h{_WIDE}" stroke="{GRAY}" stroke-opacity="0.35"/>')
        parts.append(words(left - 6, y(share) + 4, f"{share:.0%}", anchor="end"))
    parts += [words(x(alpha), bottom + 18, f"{alpha:g}", anchor="middle") for alpha in alphas]
    parts.append(words(left + _WIDE / 2, bottom + 36, "alpha, in natural lengths", anchor="middle"))
    bare = y(target["undefended"][outcome]["rate"])
    parts.append(f'<path d="M{left} {bare:.1f}h{_WIDE}" stroke="{GRAY}" stroke-dasharray="1 4" stroke-width="2"/>')
    if label:
        place = f"{left - 46} {top + _HIGH / 2}"
        parts.append(f'<text transform="translate({place}) rotate(-90)" text-anchor="middle">{label}</text>')
    for kind, _, color, dash in _KINDS:
        for name, curve in target["curves"].items():
            if name.partition(" ")[0] == kind:
                parts += _curve([(x(p["alpha"]), y(p[outcome]["rate"])) for p in curve["points"]], color, dash)
                beside = 4 if kind == "own" else 0
                parts += [
                    f'<path d="M{x(p["alpha"]) + beside:.1f} {y(p[outcome]["low"]):.1f}V{y(p[outcome]["high"]):.1f}" '
                    f'stroke="{color}" stroke-opacity="0.6"/>'
                    for p in curve["points"]
                    if kind != "random"
                ]
    return parts


def _curve(points: Sequence[tuple[float, float]], color: str, dash: str) -> list[str]:
    return [
        f'<path d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" stroke="{color}" stroke-width="2.2"{_dashed(dash)}/>'
        for (a, b), (c, d) in pairwise(points)
    ]


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""
