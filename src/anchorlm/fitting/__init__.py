"""Fitting a defense to a model, and choosing its settings on validation prompts."""

from anchorlm.fitting._calibrate import calibrate_inferaligner
from anchorlm.fitting._fit import Across, fit_inferaligner
from anchorlm.fitting._folder import check_folder, save_artifact
from anchorlm.fitting._outcomes import FluencyGrading, Grader, Outcome
from anchorlm.fitting._picture import tradeoff_svg

__all__ = [
    "Across",
    "FluencyGrading",
    "Grader",
    "Outcome",
    "calibrate_inferaligner",
    "check_folder",
    "fit_inferaligner",
    "save_artifact",
    "tradeoff_svg",
]
