from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorlm.files import save_with_card
from anchorlm.records import Artifact

RELIABILITY = "reliability.svg"

_SIZE, _LEFT, _TOP = 300, 70, 62
_GRAY, _COLOR = "#7a7a7a", "#2f8f6b"


def save_critic(artifact: Artifact, folder: str | Path) -> Path:
    """Writes a fitted critic: the artifact, its card and the picture of how far its chances can be trusted.

    Raises:
        UserError: The folder cannot be written.
    """
    picture = reliability_svg(artifact.figures["reliability"])
    return save_with_card(artifact, folder, critic_card(artifact), {RELIABILITY: picture})


def save_calibration(artifact: Artifact, folder: str | Path) -> Path:
    """Writes a calibration: the artifact, and a card with its statement.

    Raises:
        UserError: The folder cannot be written.
    """
    return save_with_card(artifact, folder, calibration_card(artifact))


def critic_card(artifact: Artifact) -> str:
    """The Markdown card of a fitted critic."""
    figures, data, settings = artifact.figures, artifact.data, artifact.settings
    target = artifact.models["target"]
    checked = figures["cost model"]
    rows = [
        ("states held out", f"{figures['states']} of {figures['prompts']} prompts"),
        ("of them, ended within budget", _share(figures["ended within budget"])),
        ("AUROC", _number(figures["auroc"])),
        (f"AUROC after the first block (n = {figures['states after the first block']})",
         _number(figures["auroc after the first block"])),
        ("the same by the budget left alone", _number(figures["auroc after the first block of the budget left"])),
        ("of all states, over budget already and not counted", _share(figures["over budget after a block"])),
        ("variance of the final reward explained", _number(figures["reward explained"])),
        ("threshold", f"{settings['threshold']:.2f}"),
        ("kept of what ends within budget", _share(figures["kept within budget"])),
        ("kept of what ends over budget", _share(figures["kept over budget"])),
        ("cost of answers to harmful prompts above that of refusals (AUROC)",
         _number(checked["auroc of answers against refusals"])),
        ("harmless rollouts within budget", _share(checked["harmless within budget"])),
    ]  # fmt: skip
    lines = [
        "---",
        "library_name: anchorlm",
        "tags: [safety, constrained-decoding, inferenceguard]",
        "---",
        f"# InferenceGuard's critic for {target.name}",
        "",
        f"Tells from the hidden state of `{target.name}` and the budget left whether an unfinished response will end "
        "within budget, and how good it will be. For this one target, cost and reward model; refused for any other.",
        "",
        "Method: Ji et al., *Almost Surely Safe Alignment of Large Language Models at Inference-Time*, arXiv "
        f"2502.01208. Made with AnchorLM {artifact.library}; id `{artifact.id}`.",
        "",
        f"Cost: `{figures['cost']}`, budget {settings['budget']:g}. Reward: `{figures['reward']}`.",
        "",
        f"Data: {data['rollouts']} sampled responses of up to {settings['max_new_tokens']} tokens, in blocks of "
        f"{settings['block']}, to {data['harmful']['n']} harmful (digest `{data['harmful']['digest']}`) and "
        f"{data['harmless']['n']} harmless prompts (`{data['harmless']['digest']}`); {data['holdout']:.0%} of the "
        f"prompts held out for threshold and figures; seed {data['seed']}.",
        "",
        "| held out | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        f"![reliability]({RELIABILITY})",
        "",
    ]
    return "\n".join(lines)


def calibration_card(artifact: Artifact) -> str:
    """The Markdown card of a calibration: its statement first."""
    settings, figures = artifact.settings, artifact.figures
    before, after = figures["before"], figures["after"]
    limit = settings["limit"]
    held = "nothing more than the budget does" if limit is None else f"what costs more than {limit:.4g}"
    return "\n".join(
        [
            "# Calibrated limit of InferenceGuard's gate",
            "",
            figures["statement"],
            "",
            f"Method: {settings['method']}; made with AnchorLM {artifact.library}; id `{artifact.id}`; pipeline "
            f"`{settings['pipeline']}`. The gate holds back {held}.",
            "",
            "| | unsafe and emitted | emitted | of |",
            "|---|---|---|---|",
            *(
                f"| {name} | {row['unsafe and emitted']} | {row['emitted']} | {row['n']} |"
                for name, row in (("before", before), ("after", after))
            ),
            "",
            f"Before, the rate was at most {100 * before['upper bound']:.1f} % with a confidence of "
            f"{100 * settings['confidence']:g} % (Clopper-Pearson).",
            "",
            f"Generation it holds for: `{json.dumps(settings['generation'])}`.",
            "",
        ]
    )


def reliability_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """What became of the states to which the critic gave about equal chances, with 95 % intervals.

    Args:
        rows: `figures["reliability"]` of a fitted critic.

    Returns:
        SVG with a transparent background, in colors that are readable on light and dark.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE + 110} {_SIZE + 130}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_GRAY}">',
        "<title>InferenceGuard's critic: what it says and what happens</title>",
        f'<text x="{_LEFT}" y="26" font-size="17" font-weight="600">How far the critic can be trusted</text>',
        f'<text x="{_LEFT}" y="46">{sum(row["n"] for row in rows)} held-out states; 95% intervals, by prompt</text>',
        f'<path d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}" stroke="{_GRAY}" stroke-dasharray="4 4"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path d="M{_LEFT} {_y(share)}h{_SIZE}" stroke="{_GRAY}" stroke-opacity="0.35"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{_y(share) + 4}" text-anchor="end">{share:.0%}</text>')
        parts.append(f'<text x="{_x(share)}" y="{_y(0) + 21}" text-anchor="middle">{share:.0%}</text>')
    points = " ".join(f"{_x(row['said'])},{_y(row['ended'])}" for row in rows)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOR}" stroke-width="2"/>')
    for row in rows:
        x = _x(row["said"])
        parts.append(f'<path d="M{x} {_y(row["low"])}V{_y(row["high"])}" stroke="{_COLOR}" stroke-width="1.5"/>')
        size = f"<title>{row['n']} states</title>"
        parts.append(f'<circle cx="{x}" cy="{_y(row["ended"])}" r="4.5" fill="{_COLOR}">{size}</circle>')
    middle = _LEFT + _SIZE / 2
    parts.append(f'<text x="{middle}" y="{_y(0) + 42}" text-anchor="middle">chance that the critic gives</text>')
    y = _TOP + _SIZE / 2
    parts.append(f'<text x="18" y="{y}" text-anchor="middle" transform="rotate(-90 18 {y})">ended within budget</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(share: float) -> float:
    return round(_LEFT + _SIZE * share, 1)


def _y(share: float) -> float:
    return round(_TOP + _SIZE * (1 - share), 1)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
