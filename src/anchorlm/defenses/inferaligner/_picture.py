from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

_WIDTH, _HEIGHT = 720, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 690, 62, 350
_INSET = 14
GRAY = "#7a7a7a"
_LINES: tuple[tuple[str, str, str, str], ...] = (
    ("harmful opened", "harmful prompts on which the gate opens", "#8f7cc4", "6 4"),
    ("refused", "harmful prompts refused cleanly", "#2f8f6b", ""),
    ("broken", "harmful prompts answered with broken text", "#c9703a", "2 3"),
)
"""Key in the curve, label, a color that is readable on white and on black, and dashes for those who see no color."""


def tradeoff_svg(calibration: Mapping[str, Any]) -> str:
    """The picture of a calibration: what the gate's bias trades, and the point that was chosen.

    Args:
        calibration: `figures["calibration"]` of a calibrated artifact.

    Returns:
        SVG with a transparent background, in colors that are readable on light and dark.
    """
    curve: Sequence[Mapping[str, Any]] = calibration["curve"]
    lines = [line for line in _LINES if line[0] in curve[0]]  # of a calibration of the gate alone only one
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{GRAY}">',
        "<title>InferAligner: what the gate's bias trades</title>",
        words(_LEFT, 26, "What the gate's bias trades", size=17),
        words(_LEFT, 46, _subtitle(calibration)),
        *_axes(),
        *_limit(calibration["limit"]),
    ]
    for key, _, color, dash in lines:
        points = " ".join(f"{_x(p['harmless opened']['rate']):.1f},{_y(p[key]['rate']):.1f}" for p in curve)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2.5"{style}/>')
    gate = calibration["gate"]
    up = calibration["guarded"]["refused"] if "guarded" in calibration else gate["harmful opened"]
    parts += _chosen(gate["harmless opened"], up)
    parts += _legend(lines)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(share: float) -> float:
    """A square root: what matters happens at a few percent."""
    return _LEFT + _INSET + (_RIGHT - _LEFT - _INSET) * sqrt(share)


def _y(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * float(share)


def _subtitle(calibration: Mapping[str, Any]) -> str:
    gate = calibration["gate"]
    n, m = gate["harmful opened"]["n"], gate["harmless opened"]["n"]
    if "undefended" not in calibration:
        return f"gate: {n} harmful, {m} harmless prompts; no answers"
    bare = calibration["undefended"]["refused"]
    asked = f"{bare['n']} harmful ones, of which it refuses {bare['hits']} unguarded"
    return f"gate: {n} harmful, {m} harmless prompts; answers: {asked}"


def _axes() -> list[str]:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="{GRAY}" stroke-opacity="0.35"/>')
        parts.append(words(_LEFT - 8, y + 4, f"{share:.0%}", anchor="end"))
    for share in (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        x = _x(share)
        parts.append(f'<path d="M{x:.1f} {_BOTTOM}v6" stroke="{GRAY}"/>')
        parts.append(words(x, _BOTTOM + 21, f"{share:.0%}", anchor="middle"))
    middle = (_LEFT + _RIGHT) / 2
    parts.append(words(middle, _BOTTOM + 42, "harmless prompts on which the gate opens", anchor="middle"))
    y = (_TOP + _BOTTOM) / 2
    parts.append(
        f'<text x="22" y="{y}" text-anchor="middle" transform="rotate(-90 22 {y})">share of harmful prompts</text>'
    )
    return parts


def _limit(limit: float) -> list[str]:
    x = _x(limit)
    return [
        f'<path d="M{x:.1f} {_TOP}V{_BOTTOM}" stroke="{GRAY}" stroke-dasharray="1 4" stroke-width="2"/>',
        words(x + 6, _BOTTOM - 8, f"limit {100 * limit:g}%"),
    ]


def _chosen(across: Mapping[str, Any], up: Mapping[str, Any]) -> list[str]:
    """The chosen point, with its 95 % intervals."""
    x, y = _x(across["rate"]), _y(up["rate"])
    color = "#2f8f6b"
    whiskers = (
        f"M{_x(across['low']):.1f} {y:.1f}H{_x(across['high']):.1f}M{x:.1f} {_y(up['low']):.1f}V{_y(up['high']):.1f}"
    )
    return [
        f'<path d="{whiskers}" stroke="{color}" stroke-width="1.5"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{color}"/>',
    ]


def _legend(lines: Sequence[tuple[str, str, str, str]]) -> list[str]:
    parts = []
    for index, (_, label, color, dash) in enumerate(lines):
        x, y = _place(index)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<path d="M{x} {y - 4}h28" stroke="{color}" stroke-width="2.5"{style}/>')
        parts.append(words(x + 36, y, label))
    x, y = _place(len(lines))
    parts.append(f'<circle cx="{x + 14}" cy="{y - 4}" r="6" fill="#2f8f6b"/>')
    parts.append(words(x + 36, y, "chosen, with 95% intervals"))
    return parts


def _place(index: int) -> tuple[int, int]:
    return _LEFT + 335 * (index % 2), _BOTTOM + 74 + 24 * (index // 2)


def words(x: float, y: float, text: str, *, anchor: str = "start", size: int = 0) -> str:
    """A text at a place. With a size it is a title."""
    style = f' font-size="{size}" font-weight="600"' if size else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{text}</text>'
