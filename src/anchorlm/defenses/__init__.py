"""One file per method; each is a short recipe over the control points."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.defenses._alignbeam import AlignBeam, AlignBeamSettings
    from anchorlm.defenses._args import ARGS, ARGSSettings
    from anchorlm.defenses._base import Defense, DefenseSettings, defense_names, find_defense, speak
    from anchorlm.defenses._best_of_n import BestOfN, BestOfNSettings
    from anchorlm.defenses._blockwise import (
        BeamSearch,
        BeamSearchSettings,
        ControlledDecoding,
        ControlledDecodingSettings,
    )
    from anchorlm.defenses._budget import CALIBRATION, generation_data, scorers_digest
    from anchorlm.defenses._evidence import EVIDENCE, opening_score, readers_of
    from anchorlm.defenses._inferaligner import InferAligner, InferAlignerSettings, SteeringDefense, SteeringSettings
    from anchorlm.defenses._inferenceguard import InferenceGuard
    from anchorlm.defenses._inferenceguard_settings import InferenceGuardSettings
    from anchorlm.defenses._prompting import GoalPriority, GoalPrioritySettings, SelfReminder, SelfReminderSettings
    from anchorlm.defenses._re_control import REControl, REControlSettings
    from anchorlm.defenses._safe_decoding import SafeDecoding, SafeDecodingSettings, safe_decoding_step
    from anchorlm.defenses._steered import CAA, CAST, AlphaSteer, CASTSettings
    from anchorlm.defenses._undefended import Undefended
    from anchorlm.team import Needs, Team
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_alignbeam": "AlignBeam AlignBeamSettings",
            "_args": "ARGS ARGSSettings",
            "_base": "Defense DefenseSettings defense_names find_defense speak",
            "_best_of_n": "BestOfN BestOfNSettings",
            "_blockwise": "BeamSearch BeamSearchSettings ControlledDecoding ControlledDecodingSettings",
            "_budget": "CALIBRATION generation_data scorers_digest",
            "_evidence": "EVIDENCE opening_score readers_of",
            "_inferaligner": "InferAligner InferAlignerSettings SteeringDefense SteeringSettings",
            "_inferenceguard": "InferenceGuard",
            "_inferenceguard_settings": "InferenceGuardSettings",
            "_prompting": "GoalPriority GoalPrioritySettings SelfReminder SelfReminderSettings",
            "_re_control": "REControl REControlSettings",
            "_safe_decoding": "SafeDecoding SafeDecodingSettings safe_decoding_step",
            "_steered": "CAA CAST AlphaSteer CASTSettings",
            "_undefended": "Undefended",
            "anchorlm.team": "Needs Team",
        },
    )

__all__ = [
    "ARGS",
    "CAA",
    "CALIBRATION",
    "CAST",
    "EVIDENCE",
    "ARGSSettings",
    "AlignBeam",
    "AlignBeamSettings",
    "AlphaSteer",
    "BeamSearch",
    "BeamSearchSettings",
    "BestOfN",
    "BestOfNSettings",
    "CASTSettings",
    "ControlledDecoding",
    "ControlledDecodingSettings",
    "Defense",
    "DefenseSettings",
    "GoalPriority",
    "GoalPrioritySettings",
    "InferAligner",
    "InferAlignerSettings",
    "InferenceGuard",
    "InferenceGuardSettings",
    "Needs",
    "REControl",
    "REControlSettings",
    "SafeDecoding",
    "SafeDecodingSettings",
    "SelfReminder",
    "SelfReminderSettings",
    "SteeringDefense",
    "SteeringSettings",
    "Team",
    "Undefended",
    "defense_names",
    "find_defense",
    "generation_data",
    "opening_score",
    "readers_of",
    "safe_decoding_step",
    "scorers_digest",
    "speak",
]
