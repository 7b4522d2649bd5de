from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoQuantizationConfig

from anchorlm.models._adapters import adapter_config, adapter_heads, announce, put_on, rehearse, without_notes
from anchorlm.models._bases import base_named
from anchorlm.models._devices import accelerator, device_map
from anchorlm.models._gguf import load_config, load_weights
from anchorlm.models._paths import gguf_file
from anchorlm.models._places import Origin, check_repository, origin
from anchorlm.models._settings import ModelSettings
from anchorlm.models._small import with_small_weights
from anchorlm.models._tokenizers import entries, first_line, load_tokenizer, template_of, why
from anchorlm.models._weights import headers, weight_files
from anchorlm.records import UserError

_log = logging.getLogger("anchorlm")

_DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,  # as which they are read, and made smaller then
    "int4": torch.float32,
}

_DERIVED = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|attn\.bias|attention\.bias|rope\.freqs)$")
"""Buffers that old checkpoints hold and models compute themselves."""


def load_processor(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Any | None:
    """What prepares a checkpoint's images, with the tokenizer and the chat template of its text. None without one."""
    found = origin(settings)
    if gguf_file(found.base) is not None:
        return None  # it holds the decoder of texts alone
    try:
        if not hasattr(_config(found, settings), "vision_config"):
            return None
        processor = AutoProcessor.from_pretrained(
            found.base, revision=found.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        _log.warning(
            "Images for %s will be refused, because its processor could not be loaded: %s. (Pillow is needed for it: "
            "pip install 'anchorlm[images]'.)",
            settings.path,
            first_line(error),
        )
        return None
    if getattr(processor, "image_processor", None) is None:
        return None  # transformers gives the tokenizer where there is no processor
    processor.tokenizer = tokenizer
    given = settings.chat_template is not None or any(template_of(each) is not None for each in found.adapters)
    if given or not isinstance(processor.chat_template, str):
        processor.chat_template = tokenizer.chat_template
    tokenizer.chat_template = processor.chat_template
    return processor


def load_model(settings: ModelSettings, kind: Any = None) -> PreTrainedModel:
    """The weights, with the adapter merged in where the weights are not quantized.

    Args:
        settings: Which, and how.
        kind: The auto class of transformers. By default that of language models.
    """
    found = origin(settings)
    if found.adapters:
        load_outline(settings, kind)  # what does not fit is known before a weight is read
    place = device_map(settings, accelerator())
    options: dict[str, Any] = {
        "revision": found.revision,
        "use_safetensors": True,
        "trust_remote_code": settings.trust_remote_code,
        "device_map": place,
        "attn_implementation": settings.attention,
        "dtype": _DTYPES[settings.dtype] if settings.dtype else _default_dtype(place, found),
    }
    try:
        if settings.quantization is not None:
            options["quantization_config"] = AutoQuantizationConfig.from_dict(settings.quantization)
        config = _config(found, settings)
        heads = adapter_heads(found.adapters)
        if heads and kind is not None:
            options["num_labels"] = next(iter(heads.values()))
        weight_files(found.base, found.revision)
        with without_notes():
            if (file := gguf_file(found.base)) is not None:
                model, report = load_weights(file, kind or _auto(config), options)
            else:
                model, report = (kind or _auto(config)).from_pretrained(found.base, **options, output_loading_info=True)
        _require_whole(report, model, found.base, heads, kind)
        for adapter in found.adapters:
            merged = settings.quantization is None and not _packed(model)
            model = put_on(model, adapter, found.base, entries(adapter), merged=merged)
        if settings.dtype in ("int8", "int4"):
            model = with_small_weights(model, settings.path, settings.dtype)
    except UserError:
        raise
    except Exception as error:  # of safetensors, transformers, PEFT and remote code, in many classes
        check_repository(found.base, found.revision)
        raise UserError(f"{settings.path!r} could not be loaded{why(error, found.base)}.") from None
    return model


def load_outline(settings: ModelSettings, kind: Any = None) -> PreTrainedModel:
    """The model's modules on the meta device, from its configuration and the headers of its weights.

    What `load_model` would refuse is refused here, as far as headers tell: weights that lack, are left over or have
    other shapes, and adapters that do not fit. Of a repository that was not downloaded weights are only looked for.
    """
    found = origin(settings)
    for adapter in found.adapters:
        adapter_config(adapter)
    try:
        config = _config(found, settings)
        heads = adapter_heads(found.adapters)
        if heads and kind is not None:
            config.num_labels = next(iter(heads.values()))
        with torch.device("meta"):
            model: PreTrainedModel = (kind or _auto(config)).from_config(
                config, attn_implementation=settings.attention, trust_remote_code=settings.trust_remote_code
            )
        files = weight_files(found.base, found.revision)
        if files is not None and settings.quantization is None and not _packed(model):
            model = _compared(model, headers(files), found.base, heads, kind)
    except UserError:
        raise
    except Exception as error:  # in the same way
        raise UserError(f"{settings.path!r} could not be read{why(error, found.base)}.") from None
    check_repository(found.base, found.revision)
    for adapter in found.adapters:
        announce(adapter, found.base)
        model = rehearse(model, adapter, found.base, entries(adapter))
    return model


def load_classifier(
    settings: ModelSettings, *, weights: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer. Without `weights`, its modules on the meta device alone.

    Raises:
        UserError: As `CausalModel.load`.
    """
    tokenizer = load_tokenizer(settings)
    return (load_model if weights else load_outline)(settings, AutoModelForSequenceClassification), tokenizer


def _compared(
    model: PreTrainedModel, saved: Mapping[str, Any], base: str, heads: Mapping[str, int], kind: Any
) -> PreTrainedModel:
    """The model on the meta device after transformers has loaded tensors without contents into it."""
    settle = getattr(kind, "settle", None)
    with without_notes():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(saved),
            device_map={"": "meta"},
            output_loading_info=True,
            key_mapping=getattr(kind, "key_mapping", None),
        )
    if settle is not None:
        settle(*loaded)
    _require_whole(loaded[1], loaded[0], base, heads, kind)
    return loaded[0]


def _require_whole(
    report: Mapping[str, Any], model: PreTrainedModel, base: str, heads: Mapping[str, int], kind: Any
) -> None:
    """Whether a checkpoint and its model are made of the same weights: transformers would go on with other ones.

    A classifier may be made of a language model: the head of another task, which it has not, is no weight of its own.

    Raises:
        UserError: Some lack, or are left over.
    """
    if _packed(model):
        return
    missing = sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in heads)
    if missing:
        remedy = "download all of its files" if kind is None else "give a model that was trained as a classifier"
        raise UserError(f"{base!r} lacks {len(missing)} weights ({', '.join(missing[:3])}): {remedy}.")
    left = [key for key in report["unexpected_keys"] if not _DERIVED.search(key)]
    if kind is not None:
        own = f"{model.base_model_prefix}."
        left = [key for key in left if key.startswith(own) and ".pooler." not in key]
    if left:
        some = ", ".join(sorted(left)[:3])
        raise UserError(
            f"{base!r} holds {len(left)} weights that its config.json has no place for ({some}): "
            "download all of its files again, or save it again with the class that it is to be loaded with."
        )


def _packed(model: PreTrainedModel) -> bool:
    """Whether its weights are stored in another form than they are computed with."""
    return getattr(model.config, "quantization_config", None) is not None


def _config(found: Origin, settings: ModelSettings) -> Any:
    if (file := gguf_file(found.base)) is not None:
        return load_config(file)
    return AutoConfig.from_pretrained(found.base, revision=found.revision, trust_remote_code=settings.trust_remote_code)


def _auto(config: Any) -> Any:
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def _default_dtype(place: Any, found: Origin) -> torch.dtype | str:
    if found.adapters and (base := base_named(found.base)) is not None:
        return _DTYPES[base.dtype]
    return "auto" if place and place != "cpu" else torch.float32
