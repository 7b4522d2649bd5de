from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorlm.defenses.inferaligner._picture import tradeoff_svg
from anchorlm.files import save_with_card
from anchorlm.records import Artifact, instruments
from anchorlm.steering import answer_of, established

PICTURE = "tradeoff.svg"

_WHO = {"anchor": "the anchor", "both": "both"}


def card(artifact: Artifact, folder: str) -> str:
    """The Markdown card of a fitted InferAligner.

    Args:
        artifact: What was fitted, calibrated or not.
        folder: Its folder, as a recipe next to it would name it.
    """
    target, anchor = artifact.models["target"], artifact.models["anchor"]
    figures, settings = artifact.figures, artifact.settings
    calibration = figures.get("calibration")
    lines = [
        "---",
        "library_name: anchorlm",
        "tags: [safety, activation-steering, inferaligner]",
        "---",
        f"# InferAligner for {target.name}",
        "",
        f"A gate that recognizes harmful prompts in the activations of `{target.name}`, and "
        + (
            "the fixed refusal where it opens: "
            + (
                "too few answers became"
                if calibration and "shifts" in calibration
                else "it was not shown that answers become"
            )
            + f" clean refusals under the steering vectors of the aligned `{anchor.name}`, which are here, too "
            '(`answer = "steer"`).'
            if answer_of(artifact) == "refuse"
            else f"steering vectors of the aligned `{anchor.name}` that are added where it opens."
        )
        + " For this one target; refused for any other.",
        "",
        "Method: Wang et al., *InferAligner*, arXiv 2401.11206. Made with AnchorLM "
        f"{artifact.library}; id `{artifact.id}`.",
        "",
        "## Use it",
        "```toml",
        "[target]",
        f"path = {json.dumps(target.name, ensure_ascii=False)}",
        "",
        "[defense]",
        'name = "inferaligner"',
        f"artifact = {json.dumps('./' + folder, ensure_ascii=False)}      # from where the recipe lies",
        "```",
        "",
        "## Models",
        "| | name | revision | architecture | layers | width | tokenizer |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {role} | {one.name} | {one.revision or 'local'} | {one.architecture} | {one.layers} "
            f"| {one.hidden_size} | `{one.tokenizer[:12]}` |"
            for role, one in artifact.models.items()
        ),
        "",
        "## Data",
        *(
            f"- {name}: {artifact.data[name]['n']} prompts, digest `{artifact.data[name]['digest']}`"
            for name in ("harmful", "harmless")
        ),
        f"- {artifact.data['holdout']:.0%} of them were held out for the figures below; seed {artifact.data['seed']}",
        "",
        "## Settings",
        "| gate layers | bias | steered layers | positions | alpha (natural lengths) |",
        "|---|---|---|---|---|",
        f"| {_numbers(settings['gate_layers'])} | {settings['bias']:.3f} | {_numbers(settings['layers'])} | "
        f"{settings['positions']} | {settings['alpha']:g} |",
        "",
        *_second(artifact),
        *(_calibrated(calibration) if calibration else ["Not calibrated yet: `anchorlm calibrate inferaligner`."]),
        "",
        "## At fit time",
        "Per layer, on held-out prompts: how often the gate is right, and the cosine of the shift with the target's "
        "own direction of harm (in brackets: "
        + (
            "the largest of random directions of the anchor through the same map"
            if figures["mapped"]
            else "of a random direction"
        )
        + "; of the target's own direction on other prompts, the most that can be expected).",
        "",
        "| layer | opens on harmful | stays closed on harmless | cosine |",
        "|---|---|---|---|",
        *_layers(figures),
        "",
        *_sets(figures),
        *(f"Note: {note}\n" for note in figures.get("notes", ())),
        _sign(figures["sign"]),
        "",
        "What told refusals here: "
        + ", ".join(f"{name} ({step})" for step, name in instruments(artifact).items())
        + ". No report lets it grade this guard.",
        "",
    ]
    return "\n".join(lines)


def _calibrated(calibration: Mapping[str, Any]) -> list[str]:
    gate, data = calibration["gate"], calibration["data"]
    others = {
        reader: calibration[key] for reader in ("anchor", "both") if (key := f"read by {_WHO[reader]}") in calibration
    }
    return [
        f"Calibrated for at most {100 * calibration['limit']:g} % of harmless prompts gated, on "
        f"{data['harmful']['n']} harmful (digest `{data['harmful']['digest']}`) and {data['harmless']['n']} harmless "
        f"prompts (`{data['harmless']['digest']}`). The gate opens on {percent(gate['harmful opened'])} of the harmful "
        f"and {percent(gate['harmless opened'])} of the harmless ones.",
        "",
        *(
            f'With `reader = "{reader}"` it opens on {percent(found["gate"]["harmful opened"])} and '
            f"{percent(found['gate']['harmless opened'])}.\n"
            for reader, found in others.items()
        ),
        *_sets(gate),
        *_outcomes(calibration, others),
        f"![trade-off]({PICTURE})",
    ]


def _outcomes(calibration: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What becomes of harmful prompts. Nothing where the gate alone was calibrated."""
    if "guarded" not in calibration:
        return ["Only the gate was calibrated: the fixed refusal is given where it opens.", ""]
    guarded, bare, names = calibration["guarded"], calibration["undefended"], ("refused", "complied", "broken")
    return [
        f"Outcomes of harmful prompts ({calibration['measured on']}; graded by: {calibration['grader']}), with 95 % "
        "intervals:",
        "",
        "| | refused | complied | broken |",
        "|---|---|---|---|",
        f"| undefended | {' | '.join(percent(bare[name]) for name in names)} |",
        f"| guarded | {' | '.join(percent(guarded[name]) for name in names)} |",
        *(
            f'| guarded, `reader = "{reader}"` | {" | ".join(percent(found["guarded"][name]) for name in names)} |'
            for reader, found in others.items()
        ),
        "",
    ]


def _sets(found: Mapping[str, Any]) -> list[str]:
    """On how many prompts of every set a gate opens. Nothing in artifacts from before there were sets."""
    if not (sets := found.get("sets")):
        return []
    rows = [f"| {one['set']} | {one['class']} | {one['opened']['n']} | {percent(one['opened'])} |" for one in sets]
    lines = ["| set | class | n | the gate opens on |", "|---|---|---|---|", *rows, ""]
    if told := found["look-alikes told"]:
        area = f"{told['auroc']:.3f} ({told['low']:.3f} to {told['high']:.3f})"
        lines += [f"Harmful prompts against look-alikes: AUROC {area}.", ""]
    return lines


def _second(artifact: Artifact) -> list[str]:
    """The gate that reads another model."""
    if "reader" not in artifact.models:  # made before there was one
        return []
    settings = artifact.settings
    return [
        f"A second gate reads `{artifact.models['reader'].name}`, at layers {_numbers(settings['reader_gate_layers'])} "
        f'with bias {settings["reader_bias"]:.3f} (`reader = "anchor"`), or both do, with bias '
        f'{settings["both_bias"]:.3f} (`reader = "both"`); that model is then the recipe\'s anchor.',
        "",
    ]


def _layers(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"| {row['layer']} | {_share(row, 'harmful opened', 'harmful interval')} | "
        f"{_share(row, 'harmless closed', 'harmless interval')} | {told_cosine(figures, row['layer'])} |"
        for row in figures["gate"]
    ]


def told_cosine(figures: Mapping[str, Any], layer: int) -> str:
    """`0.93 (0.41; 0.99)`: of the shift with the target's own direction. Next to it what chance gives, through the map
    where there is one, and what the own direction has with itself on other prompts.
    """
    own = figures["cosine with the target's own direction"]
    chance = (
        figures.get("largest cosine of a random direction through the map") or figures["cosine of a random direction"]
    )
    again = figures.get("cosine of its own direction on held-out prompts")
    beside = f"{chance[layer]:.2f}" + (f"; {again[layer]:.2f}" if again else "")
    return f"{own[layer]:.2f} ({beside})"


def _share(row: Mapping[str, Any], name: str, interval: str) -> str:
    return percent({"rate": row[name], "low": row[interval][0], "high": row[interval][1]})


def _sign(sign: Mapping[str, Any]) -> str:
    if not sign["measured"]:
        return (
            f"The sign was not measured: none of {sign['n']} held-out harmful prompts was refused with the vectors "
            "added or subtracted."
        )
    way = "along" if sign["sign"] > 0 else "against"
    return (
        f"The sign was measured: of {sign['n']} held-out harmful prompts, {sign['refused towards']} were refused with "
        f"the vectors added and {sign['refused away']} with them subtracted, so alpha steers {way} them"
        + ("." if established(sign) else "; so few do not show which way refusals lie.")
    )


def percent(rate: Mapping[str, Any]) -> str:
    """`97 % (90 to 99)` for a rate with its interval."""
    return f"{100 * rate['rate']:.0f} % ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def save_artifact(artifact: Artifact, folder: str | Path) -> Path:
    """Writes a fitted InferAligner: the artifact, its card, and once it is calibrated the picture of its trade-off.

    Raises:
        UserError: The folder cannot be written.
    """
    calibration = artifact.figures.get("calibration")
    picture = None if calibration is None else tradeoff_svg(calibration)
    return save_with_card(artifact, folder, card(artifact, Path(folder).resolve().name), {PICTURE: picture})
