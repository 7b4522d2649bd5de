"""A checkpoint as AnchorLM sees it. How to run it is the engine's business."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.models._bases import BASES, REAL, SHIPPED, PackagedBase, base_named, located
    from anchorlm.models._call_grammar import call_grammar
    from anchorlm.models._call_watch import CallWatch
    from anchorlm.models._calls import CallForm
    from anchorlm.models._causal import CausalModel
    from anchorlm.models._channel import Channel
    from anchorlm.models._convert import check_conversion, convert
    from anchorlm.models._devices import accelerator, default_place
    from anchorlm.models._endpoint_model import EndpointModel
    from anchorlm.models._endpoint_settings import EndpointSettings, ModelSource, model_settings
    from anchorlm.models._ends import TurnEnds
    from anchorlm.models._find_calls import ToolTemplate, find_tools
    from anchorlm.models._find_channel import find_channel
    from anchorlm.models._images import PromptIds
    from anchorlm.models._loading import load_classifier, load_model, load_outline
    from anchorlm.models._markers import TurnMarkers, find_markers
    from anchorlm.models._paths import check_paths
    from anchorlm.models._prepacked import prepack
    from anchorlm.models._rendering import TemplateFailedError, TemplateRefusedError, rendered, template_names
    from anchorlm.models._settings import ModelSettings
    from anchorlm.models._specials import control_texts, without_specials
    from anchorlm.models._stamp import contents, identity, stamp
    from anchorlm.models._template import PLAIN_TEMPLATE, chosen_template, encode_text, message_parts
    from anchorlm.models._tokenizers import load_tokenizer
    from anchorlm.models._tool_turns import no_tools
    from anchorlm.models._vllm_settings import UNREAD, VLLM_ACCESS, VLLMSettings
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_bases": "BASES REAL SHIPPED PackagedBase base_named located",
            "_call_grammar": "call_grammar",
            "_call_watch": "CallWatch",
            "_calls": "CallForm",
            "_causal": "CausalModel",
            "_channel": "Channel",
            "_convert": "check_conversion convert",
            "_devices": "accelerator default_place",
            "_endpoint_model": "EndpointModel",
            "_endpoint_settings": "EndpointSettings ModelSource model_settings",
            "_ends": "TurnEnds",
            "_find_calls": "ToolTemplate find_tools",
            "_find_channel": "find_channel",
            "_images": "PromptIds",
            "_loading": "load_classifier load_model load_outline",
            "_markers": "TurnMarkers find_markers",
            "_paths": "check_paths",
            "_prepacked": "prepack",
            "_rendering": "TemplateFailedError TemplateRefusedError rendered template_names",
            "_settings": "ModelSettings",
            "_specials": "control_texts without_specials",
            "_stamp": "contents identity stamp",
            "_template": "PLAIN_TEMPLATE chosen_template encode_text message_parts",
            "_tokenizers": "load_tokenizer",
            "_tool_turns": "no_tools",
            "_vllm_settings": "UNREAD VLLM_ACCESS VLLMSettings",
        },
    )

__all__ = [
    "BASES",
    "PLAIN_TEMPLATE",
    "REAL",
    "SHIPPED",
    "UNREAD",
    "VLLM_ACCESS",
    "CallForm",
    "CallWatch",
    "CausalModel",
    "Channel",
    "EndpointModel",
    "EndpointSettings",
    "ModelSettings",
    "ModelSource",
    "PackagedBase",
    "PromptIds",
    "TemplateFailedError",
    "TemplateRefusedError",
    "ToolTemplate",
    "TurnEnds",
    "TurnMarkers",
    "VLLMSettings",
    "accelerator",
    "base_named",
    "call_grammar",
    "check_conversion",
    "check_paths",
    "chosen_template",
    "contents",
    "control_texts",
    "convert",
    "default_place",
    "encode_text",
    "find_channel",
    "find_markers",
    "find_tools",
    "identity",
    "load_classifier",
    "load_model",
    "load_outline",
    "load_tokenizer",
    "located",
    "message_parts",
    "model_settings",
    "no_tools",
    "prepack",
    "rendered",
    "stamp",
    "template_names",
    "without_specials",
]
