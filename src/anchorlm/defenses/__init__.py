"""One file per method; each is a short recipe over the control points."""

from anchorlm.defenses._alignbeam import AlignBeam, AlignBeamSettings
from anchorlm.defenses._base import Defense, DefenseSettings, Needs, Team, defense_names, find_defense, speak
from anchorlm.defenses._best_of_n import BestOfN, BestOfNSettings
from anchorlm.defenses._inferaligner import InferAligner, InferAlignerSettings, SteeringDefense, SteeringSettings
from anchorlm.defenses._prompting import GoalPriority, GoalPrioritySettings, SelfReminder, SelfReminderSettings
from anchorlm.defenses._safe_decoding import SafeDecoding, SafeDecodingSettings, safe_decoding_step
from anchorlm.defenses._steered import CAA, CAST, AlphaSteer, CASTSettings
from anchorlm.defenses._undefended import Undefended

__all__ = [
    "CAA",
    "CAST",
    "AlignBeam",
    "AlignBeamSettings",
    "AlphaSteer",
    "BestOfN",
    "BestOfNSettings",
    "CASTSettings",
    "Defense",
    "DefenseSettings",
    "GoalPriority",
    "GoalPrioritySettings",
    "InferAligner",
    "InferAlignerSettings",
    "Needs",
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
    "speak",
]
