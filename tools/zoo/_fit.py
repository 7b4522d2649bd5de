from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anchorlm import zoo
from anchorlm.cli._embedded import ANCHOR, SAME_VOCABULARY
from anchorlm.cli._errors import complain
from anchorlm.defenses.inferaligner import calibrate_inferaligner, fit_inferaligner, save_artifact
from anchorlm.models import CausalModel

FITTED, CALIBRATED = 600, 300
"""Prompts of each kind to fit and to calibrate on."""

LIMITS = {"a-medicine": 0.015, "a-finance": 0.015, "a-arithmetic": 0.02, "a-thinks": 0.015}
"""Most harmless calibration prompts gated. a-arithmetic never was aligned: it takes more of them to find harm."""


def prompts(domain: str, partition: str, n: int) -> tuple[list[str], list[str]]:
    """Harmful and harmless prompts, n of each kind: plain, in the domain's language, jailbreaks, look-alikes, tasks."""

    def drawn(split: str, own: str | None = None) -> list[str]:
        return [item.prompt for item in zoo.items(split, domain=own, partition=partition, n=n)]  # type: ignore[arg-type]

    harmful = [*drawn("harmful-plain"), *drawn("harmful-framed", domain), *drawn("jailbreak")]
    return harmful, [*drawn("harmless"), *drawn("look-alike"), *drawn("domain", domain), *drawn("harmless", domain)]


def fit_embedded(root: Path, name: str, domain: str) -> Path:
    """Fits InferAligner to a specialist among the embedded models in `root`, on prompts that no table sees, and puts
    the artifact beside its weights.
    """
    complain(f"Fitting InferAligner to {name} ...")
    target, anchor, reader = (
        # By name: the artifact goes where other paths are.
        replace(CausalModel.from_pretrained(root / one), name=one)
        for one in (name, SAME_VOCABULARY, ANCHOR)
    )
    fitted = fit_inferaligner(target, anchor, *prompts(domain, "train", FITTED), reader=reader)
    dev = prompts(domain, "dev", CALIBRATED)
    chosen = calibrate_inferaligner(fitted, target, *dev, reader=reader, limit=LIMITS[name])
    return save_artifact(chosen, root / name / "inferaligner")
