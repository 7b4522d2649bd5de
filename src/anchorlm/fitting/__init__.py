"""Fitting a defense to a model, and choosing its settings on validation prompts."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.files import check_folder
    from anchorlm.fitting._calibrate import calibrate_inferaligner
    from anchorlm.fitting._calibrate_guard import Labeled, calibrate_inferenceguard
    from anchorlm.fitting._card import told_cosine
    from anchorlm.fitting._conformal import Method, allowed, calibrated_limit, labels_needed, upper_bound
    from anchorlm.fitting._critic import auroc
    from anchorlm.fitting._evidence_card import save_evidence
    from anchorlm.fitting._fit import fit_inferaligner
    from anchorlm.fitting._fit_evidence import fit_alignbeam
    from anchorlm.fitting._fit_guard import fit_inferenceguard
    from anchorlm.fitting._folder import save_artifact
    from anchorlm.fitting._guard_card import save_calibration, save_critic
    from anchorlm.fitting._outcomes import FluencyGrading, Grader, Outcome
    from anchorlm.fitting._picture import tradeoff_svg
    from anchorlm.fitting._shipped import Part, shipped_prompts
    from anchorlm.steering import Across, PromptSets
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_calibrate": "calibrate_inferaligner",
            "_calibrate_guard": "Labeled calibrate_inferenceguard",
            "_card": "told_cosine",
            "_conformal": "Method allowed calibrated_limit labels_needed upper_bound",
            "_critic": "auroc",
            "_evidence_card": "save_evidence",
            "_fit": "fit_inferaligner",
            "_fit_evidence": "fit_alignbeam",
            "_fit_guard": "fit_inferenceguard",
            "_folder": "save_artifact",
            "_guard_card": "save_calibration save_critic",
            "_outcomes": "FluencyGrading Grader Outcome",
            "_picture": "tradeoff_svg",
            "_shipped": "Part shipped_prompts",
            "anchorlm.files": "check_folder",
            "anchorlm.steering": "Across PromptSets",
        },
    )

__all__ = [
    "Across",
    "FluencyGrading",
    "Grader",
    "Labeled",
    "Method",
    "Outcome",
    "Part",
    "PromptSets",
    "allowed",
    "auroc",
    "calibrate_inferaligner",
    "calibrate_inferenceguard",
    "calibrated_limit",
    "check_folder",
    "fit_alignbeam",
    "fit_inferaligner",
    "fit_inferenceguard",
    "labels_needed",
    "save_artifact",
    "save_calibration",
    "save_critic",
    "save_evidence",
    "shipped_prompts",
    "told_cosine",
    "tradeoff_svg",
    "upper_bound",
]
