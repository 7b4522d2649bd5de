"""A checkpoint as AnchorLM sees it; how to run it is the engine's business."""

from anchorlm.models._causal import CausalModel, ModelSettings
from anchorlm.models._stamp import stamp
from anchorlm.models._template import PLAIN_TEMPLATE, control_texts, without_specials

__all__ = ["PLAIN_TEMPLATE", "CausalModel", "ModelSettings", "control_texts", "stamp", "without_specials"]
