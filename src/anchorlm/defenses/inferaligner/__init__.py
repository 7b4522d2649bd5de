"""InferAligner (arXiv 2401.11206): settings, defense, aligner. Fit, calibration and card."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.defenses.inferaligner._across import RidgeMap, matching_layer, ridge_map
    from anchorlm.defenses.inferaligner._aligner import Aligner
    from anchorlm.defenses.inferaligner._calibrate import calibrate_inferaligner
    from anchorlm.defenses.inferaligner._card import save_artifact, told_cosine
    from anchorlm.defenses.inferaligner._defense import InferAligner, SteeringDefense
    from anchorlm.defenses.inferaligner._fit import Across, fit_inferaligner
    from anchorlm.defenses.inferaligner._measured import best_threshold, null_space_reader
    from anchorlm.defenses.inferaligner._picture import GRAY, tradeoff_svg, words
    from anchorlm.defenses.inferaligner._settings import InferAlignerSettings, SteeringSettings
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_across": "RidgeMap matching_layer ridge_map",
            "_aligner": "Aligner",
            "_calibrate": "calibrate_inferaligner",
            "_card": "save_artifact told_cosine",
            "_defense": "InferAligner SteeringDefense",
            "_fit": "Across fit_inferaligner",
            "_measured": "best_threshold null_space_reader",
            "_picture": "GRAY tradeoff_svg words",
            "_settings": "InferAlignerSettings SteeringSettings",
        },
    )

__all__ = [
    "GRAY",
    "Across",
    "Aligner",
    "InferAligner",
    "InferAlignerSettings",
    "RidgeMap",
    "SteeringDefense",
    "SteeringSettings",
    "best_threshold",
    "calibrate_inferaligner",
    "fit_inferaligner",
    "matching_layer",
    "null_space_reader",
    "ridge_map",
    "save_artifact",
    "told_cosine",
    "tradeoff_svg",
    "words",
]
