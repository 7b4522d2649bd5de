"""One room per method. Each reads in the order of its paper."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.defenses._args import ARGS, ARGSSettings
    from anchorlm.defenses._base import Defense, DefenseSettings, defense_names, find_defense, stream_target
    from anchorlm.defenses._best_of_n import BestOfN, BestOfNSettings
    from anchorlm.defenses._blockwise import (
        BeamSearch,
        BeamSearchSettings,
        ControlledDecoding,
        ControlledDecodingSettings,
    )
    from anchorlm.defenses._prompting import GoalPriority, GoalPrioritySettings, SelfReminder, SelfReminderSettings
    from anchorlm.defenses._re_control import REControl, REControlSettings
    from anchorlm.defenses._safe_decoding import SafeDecoding, SafeDecodingSettings, safe_decoding_step
    from anchorlm.defenses._steered import CAA, CAST, AlphaSteer, CASTSettings
    from anchorlm.defenses._undefended import Undefended
    from anchorlm.defenses.alignbeam._defense import AlignBeam
    from anchorlm.defenses.alignbeam._settings import AlignBeamSettings
    from anchorlm.defenses.inferaligner._defense import InferAligner, SteeringDefense
    from anchorlm.defenses.inferaligner._settings import InferAlignerSettings, SteeringSettings
    from anchorlm.defenses.inferenceguard._defense import InferenceGuard
    from anchorlm.defenses.inferenceguard._settings import InferenceGuardSettings
    from anchorlm.team import Needs, Team
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_args": "ARGS ARGSSettings",
            "_base": "Defense DefenseSettings defense_names find_defense stream_target",
            "_best_of_n": "BestOfN BestOfNSettings",
            "_blockwise": "BeamSearch BeamSearchSettings ControlledDecoding ControlledDecodingSettings",
            "_prompting": "GoalPriority GoalPrioritySettings SelfReminder SelfReminderSettings",
            "_re_control": "REControl REControlSettings",
            "_safe_decoding": "SafeDecoding SafeDecodingSettings safe_decoding_step",
            "_steered": "AlphaSteer CAA CAST CASTSettings",
            "_undefended": "Undefended",
            "anchorlm.defenses.alignbeam._defense": "AlignBeam",
            "anchorlm.defenses.alignbeam._settings": "AlignBeamSettings",
            "anchorlm.defenses.inferaligner._defense": "InferAligner SteeringDefense",
            "anchorlm.defenses.inferaligner._settings": "InferAlignerSettings SteeringSettings",
            "anchorlm.defenses.inferenceguard._defense": "InferenceGuard",
            "anchorlm.defenses.inferenceguard._settings": "InferenceGuardSettings",
            "anchorlm.team": "Needs Team",
        },
        moved={
            "anchorlm.defenses": "speak=stream_target",
            "anchorlm.defenses.alignbeam": "EVIDENCE opening_score readers_of",
            "anchorlm.defenses.inferenceguard": "CALIBRATION generation_data scorers_digest",
        },
    )

__all__ = [
    "ARGS",
    "CAA",
    "CAST",
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
    "safe_decoding_step",
    "stream_target",
]
