"""A checkpoint as AnchorLM sees it; how to run it is the engine's business."""

from anchorlm.models._bases import BASES, REAL, SHIPPED, PackagedBase, base_named, located
from anchorlm.models._causal import CausalModel
from anchorlm.models._convert import convert
from anchorlm.models._images import PromptIds
from anchorlm.models._loading import load_classifier, load_model, load_outline
from anchorlm.models._markers import TurnMarkers, find_markers
from anchorlm.models._rendering import TemplateFailedError, TemplateRefusedError, rendered
from anchorlm.models._settings import ModelSettings, ModelSource
from anchorlm.models._stamp import contents, identity, stamp
from anchorlm.models._template import PLAIN_TEMPLATE, control_texts, message_parts, without_specials
from anchorlm.models._tokenizers import load_tokenizer

__all__ = [
    "BASES",
    "PLAIN_TEMPLATE",
    "REAL",
    "SHIPPED",
    "CausalModel",
    "ModelSettings",
    "ModelSource",
    "PackagedBase",
    "PromptIds",
    "TemplateFailedError",
    "TemplateRefusedError",
    "TurnMarkers",
    "base_named",
    "contents",
    "control_texts",
    "convert",
    "find_markers",
    "identity",
    "load_classifier",
    "load_model",
    "load_outline",
    "load_tokenizer",
    "located",
    "message_parts",
    "rendered",
    "stamp",
    "without_specials",
]
