from __future__ import annotations

import logging
import warnings
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoQuantizationConfig

from anchorlm.models._gguf import check_options, gguf_file, load_config, load_weights, read_header
from anchorlm.models._gguf_tokenizer import gguf_tokenizer
from anchorlm.models._places import adapter_base, adapter_heads, check_adapter, check_folder, check_repository
from anchorlm.models._settings import ModelSettings
from anchorlm.records import UserError

_log = logging.getLogger("anchorlm")

_DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a checkpoint, with `chat_template` (its text, or a file) in place of its own if given."""
    path, template = _place(settings), settings.chat_template
    check_folder(path)
    source, revision = _tokenizer_source(path, settings.revision)
    try:
        if (file := gguf_file(source)) is not None:
            tokenizer = gguf_tokenizer(read_header(file))
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=settings.trust_remote_code
            )
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes the libraries raise has no common class
        raise UserError(f"No tokenizer could be loaded from {path!r}{_why(error, path)}.") from None
    if not tokenizer.is_fast:
        raise UserError(f"{path!r} has only a slow tokenizer: convert it once with save_pretrained of its fast class.")
    if template is not None:
        tokenizer.chat_template = template if "{" in template else _read_template(template)
    return tokenizer


def load_processor(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Any | None:
    """What prepares a checkpoint's images, with the tokenizer and the chat template of its text; None without one."""
    base, _ = _adapter_chain(settings)
    if gguf_file(base) is not None:
        return None
    revision = settings.revision if base == settings.path else None
    try:
        if not hasattr(_config(base, revision, settings), "vision_config"):
            return None
        processor = AutoProcessor.from_pretrained(base, revision=revision, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        _log.warning(
            "Images for %s will be refused, because its processor could not be loaded: %s. (Pillow is needed for it: "
            "pip install 'anchorlm[images]'.)",
            settings.path,
            _first_line(error),
        )
        return None
    if getattr(processor, "image_processor", None) is None:
        return None  # transformers gives the tokenizer where there is no processor
    processor.tokenizer = tokenizer
    if settings.chat_template is not None or not processor.chat_template:
        processor.chat_template = tokenizer.chat_template
    tokenizer.chat_template = processor.chat_template
    return processor


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The chat template {path!r} is neither Jinja text nor a readable file: {error}.") from None


def load_model(settings: ModelSettings, kind: Any = None) -> PreTrainedModel:
    """The weights, with the adapter merged in where the weights are not quantized.

    Args:
        settings: Which, and how.
        kind: The auto class of transformers; by default that of language models.
    """
    path, device_map = settings.path, settings.device_map
    base, adapters = _adapter_chain(settings)
    revision = settings.revision if base == path else None
    options: dict[str, Any] = {
        "revision": revision,
        "use_safetensors": True,
        "trust_remote_code": settings.trust_remote_code,
        "device_map": device_map,
        "attn_implementation": settings.attention,
        "dtype": _DTYPES[settings.dtype] if settings.dtype else _default_dtype(device_map),
    }
    try:
        if settings.quantization is not None:
            options["quantization_config"] = AutoQuantizationConfig.from_dict(settings.quantization)
        config = _config(base, revision, settings)
        heads = adapter_heads(adapters)
        if heads and kind is not None:
            options["num_labels"] = next(iter(heads.values()))
        if (file := gguf_file(base)) is not None:
            model, report = load_weights(file, kind or _auto(config), options)
        else:
            model, report = (kind or _auto(config)).from_pretrained(base, **options, output_loading_info=True)
        missing = {key for key in report["missing_keys"] if key.partition(".")[0] not in heads}
        if missing and settings.quantization is None:
            # transformers would go on with random weights in their place.
            some = ", ".join(sorted(missing)[:3])
            remedy = "download all of its files" if kind is None else "give a model that was trained as a classifier"
            raise UserError(f"{base!r} lacks {len(missing)} weights ({some}): {remedy}.")
        for adapter in adapters:
            check_adapter(adapter, model, base)
            model = _with_adapter(model, adapter, base)
            # A merged adapter costs nothing per token; quantized weights would lose by it.
            model = model.merge_and_unload() if settings.quantization is None else model.base_model.model
    except UserError:
        raise
    except Exception as error:  # of safetensors, transformers, PEFT and remote code, in many classes
        check_repository(base, revision)
        raise UserError(f"{path!r} could not be loaded{_why(error, base)}.") from None
    return model


def load_outline(settings: ModelSettings, kind: Any = None) -> PreTrainedModel:
    """The model's modules on the meta device, from its configuration alone.

    Its weights are not read, but looked for; those of an adapter on disk are compared with the modules in shape.
    """
    base, adapters = _adapter_chain(settings)
    revision = settings.revision if base == settings.path else None
    try:
        config = _config(base, revision, settings)
        if (heads := adapter_heads(adapters)) and kind is not None:
            config.num_labels = next(iter(heads.values()))
        with torch.device("meta"):
            model: PreTrainedModel = (kind or _auto(config)).from_config(
                config, attn_implementation=settings.attention, trust_remote_code=settings.trust_remote_code
            )
    except UserError:
        raise
    except Exception as error:  # likewise
        raise UserError(f"{settings.path!r} could not be read{_why(error, base)}.") from None
    check_repository(base, revision)
    for adapter in adapters:
        check_adapter(adapter, model, base)
    return model


def load_classifier(
    settings: ModelSettings, *, weights: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer; without `weights`, its modules on the meta device alone.

    Raises:
        UserError: As `CausalModel.load`.
    """
    tokenizer = load_tokenizer(settings)
    return (load_model if weights else load_outline)(settings, AutoModelForSequenceClassification), tokenizer


def _config(base: str, revision: str | None, settings: ModelSettings) -> Any:
    if (file := gguf_file(base)) is not None:
        return load_config(file)
    return AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=settings.trust_remote_code)


def _auto(config: Any) -> Any:
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def _default_dtype(device_map: object) -> torch.dtype | str:
    return "auto" if device_map and device_map != "cpu" else torch.float32


def _with_adapter(model: PreTrainedModel, adapter: str, base: str) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's own affair
        # peft would go on with a part of the adapter.
        warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
        try:
            return PeftModel.from_pretrained(model, adapter)
        except (UserWarning, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"The adapter {adapter!r} does not fit {base!r} ({why}): give the base model that it was trained on."
            ) from None


def _place(settings: ModelSettings) -> str:
    """The path, down to the file of a folder that is named."""
    file = gguf_file(settings.path, settings.gguf_file)
    if file is None:
        return settings.path
    check_options(file, settings.dtype, settings.quantization)
    return str(file)


def _tokenizer_source(path: str, revision: str | None) -> tuple[str, str | None]:
    """An adapter's folder may leave its tokenizer with the base model."""
    while (folder := Path(path)).is_dir() and not (folder / "tokenizer.json").is_file():
        if not (folder / "adapter_config.json").is_file():
            break
        path, revision = adapter_base(folder), None
    return path, revision


def _adapter_chain(settings: ModelSettings) -> tuple[str, list[str]]:
    """The base model, and the adapters to put on it in order: a base may itself be a folder of an adapter."""
    path = _place(settings)
    check_folder(path)
    chain = [settings.adapter] if settings.adapter else []
    while (folder := Path(path)).is_dir() and (folder / "adapter_config.json").is_file():
        chain.insert(0, path)
        path = adapter_base(folder)
        check_folder(path)
    return path, chain


def _why(error: Exception, path: str) -> str:
    """The rest of a sentence: what a library says, and where that knows no remedy, ours."""
    if "ignore_mismatched_sizes" in str(error):
        return ": its weights have other shapes than its config.json says; download all of its files again"
    if isinstance(error, ValueError | ImportError) and not isinstance(error, JSONDecodeError):
        return f": {_first_line(error)}"
    local = Path(path).is_dir()
    remedy = "download all of its files again" if local else "check its name, your access and the network"
    return f" ({_first_line(error)}): {remedy}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
