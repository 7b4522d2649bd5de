from __future__ import annotations

from pathlib import Path

from anchorlm.files import save_with_card
from anchorlm.records import Artifact


def save_evidence(artifact: Artifact, folder: str | Path) -> Path:
    """Writes the evidence that AlignBeam's alpha goes by: the artifact and its card.

    Raises:
        UserError: The folder cannot be written.
    """
    return save_with_card(artifact, folder, evidence_card(artifact))


def evidence_card(artifact: Artifact) -> str:
    """The Markdown card."""
    target, anchor = (artifact.models[role].name for role in ("target", "anchor"))
    figures, settings = artifact.figures, artifact.settings
    gate = f", InferAligner's gate (`{settings['gate']}`) {settings['gate_weight']:.2f}" if settings["gate"] else ""
    lines = [
        "---",
        "library_name: anchorlm",
        "tags: [safety, decoding, alignbeam]",
        "---",
        f"# Evidence of harm for AlignBeam around {target}",
        "",
        f"Tells how far a prompt is harmful. The anchor `{anchor}` then guides `{target}` as far as that. For these "
        "two models; refused for any other.",
        "",
        f"Made with AnchorLM {artifact.library}; id `{artifact.id}`. Weights: the anchor's first token "
        f"{settings['opening_weight']:.2f}{gate}; offset {settings['offset']:.2f}. At or below {settings['low']:.2f} "
        f"the target answers alone, from {settings['high']:.2f} on the refusal is given at once.",
        "",
        f"AUROC of harmful against harmless prompts: {figures['auroc']:.3f}; of the first token alone "
        f"{figures['auroc of the opening']:.3f}. On the prompts that chose the thresholds, %, with 95 % intervals:",
        "",
        "| prompts | n | guided or refused | refused at once |",
        "|---|---|---|---|",
    ]
    for name, one in figures["sets"].items():
        told = [
            f"{100 * one[what]['rate']:.0f} ({100 * one[what]['interval'][0]:.0f} to "
            f"{100 * one[what]['interval'][1]:.0f})"
            for what in ("guided", "in full")
        ]
        lines.append(f"| {name} | {one['n']} | {' | '.join(told)} |")
    return "\n".join([*lines, ""])
