"""InferenceGuard (arXiv 2502.01208): settings, defense, critic. Fit, calibration and cards."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.defenses.inferenceguard._calibrate import Labeled, calibrate_inferenceguard
    from anchorlm.defenses.inferenceguard._card import save_calibration, save_critic
    from anchorlm.defenses.inferenceguard._conformal import (
        Method,
        allowed,
        calibrated_limit,
        labels_needed,
        upper_bound,
    )
    from anchorlm.defenses.inferenceguard._critic import Critic
    from anchorlm.defenses.inferenceguard._defense import InferenceGuard
    from anchorlm.defenses.inferenceguard._fit import fit_inferenceguard
    from anchorlm.defenses.inferenceguard._pipeline import CALIBRATION, generation_data, scorers_digest
    from anchorlm.defenses.inferenceguard._settings import InferenceGuardSettings
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_calibrate": "Labeled calibrate_inferenceguard",
            "_card": "save_calibration save_critic",
            "_conformal": "Method allowed calibrated_limit labels_needed upper_bound",
            "_critic": "Critic",
            "_defense": "InferenceGuard",
            "_fit": "fit_inferenceguard",
            "_pipeline": "CALIBRATION generation_data scorers_digest",
            "_settings": "InferenceGuardSettings",
        },
    )

__all__ = [
    "CALIBRATION",
    "Critic",
    "InferenceGuard",
    "InferenceGuardSettings",
    "Labeled",
    "Method",
    "allowed",
    "calibrate_inferenceguard",
    "calibrated_limit",
    "fit_inferenceguard",
    "generation_data",
    "labels_needed",
    "save_calibration",
    "save_critic",
    "scorers_digest",
    "upper_bound",
]
