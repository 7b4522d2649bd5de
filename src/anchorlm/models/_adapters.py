"""Putting PEFT adapters on: what is known from their headers is known before a weight is read."""

from __future__ import annotations

import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from anchorlm.models._paths import check_folder
from anchorlm.models._places import ADAPTER_WEIGHTS
from anchorlm.models._weights import headers
from anchorlm.records import UserError

_log = logging.getLogger("anchorlm")

MERGED = (
    "LORA", "ADALORA", "LOHA", "LOKR", "OFT", "VERA", "IA3", "LN_TUNING", "HRA", "MISS", "FOURIERFT", "C3A",
    "TRAINABLE_TOKENS", "RANDLORA", "DELORA", "GRALORA", "ROAD",
)  # fmt: skip
"""PEFT types that become part of the base model's weights and leave its outputs as they are. The tests merge each."""

_WRITTEN_TWICE = re.compile(r"expert|\.(modules_to_save|original_module|token_adapter)\.")
"""What peft writes of a whole module, or of one that is tied, under a second name that it does not read. And weights of
experts, which are stored one by one or fused."""

_PREFIX = "base_model.model."


def adapter_config(adapter: str) -> PeftConfig:
    """The settings of an adapter in a folder that is there as safetensors and can become part of its base's weights.

    Raises:
        UserError: It is not there, is pickled, or is of a kind that works otherwise.
    """
    check_folder(adapter)
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{adapter!r} is no PEFT adapter: give the folder or Hub id of one.") from None
    # peft would fall back to pickled weights, which can run code.
    if not (Path(adapter) / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{adapter!r} holds no {ADAPTER_WEIGHTS}: save the adapter as safetensors.")
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    apart = {
        "prompt learning": config.is_prompt_learning,
        "activated LoRA": getattr(config, "alora_invocation_tokens", None),
        "LoRA with layer_replication": getattr(config, "layer_replication", None),
    }
    found = next((what for what, applies in apart.items() if applies), None if kind in MERGED else "PEFT type")
    if found:
        raise UserError(
            f"The adapter {adapter!r} is of a kind that cannot be merged into its base model ({found}, {kind}): give "
            "one that can, such as a plain LoRA, or a whole model."
        )
    return config


def announce(adapter: str, base: str) -> None:
    """Says in the log where an adapter names another base model than it is put on."""
    if adapter == base:  # a whole model with its adapter
        return
    named = adapter_config(adapter).base_model_name_or_path
    if named and Path(named).name.casefold() != Path(base).name.casefold():
        _log.warning(
            "The adapter %r names %r as its base model and is put on %r: make sure that they are the same.",
            adapter, named, base,
        )  # fmt: skip


def adapter_heads(adapters: tuple[str, ...]) -> dict[str, int]:
    """The modules that adapters bring whole, as those of classifiers do their head, with the rows of each."""
    heads: dict[str, int] = {}
    for adapter in adapters:
        for key, weight in headers([Path(adapter) / ADAPTER_WEIGHTS]).items():
            name = key.removeprefix(_PREFIX)
            if name.endswith(".weight") and ".lora_" not in name and name.count(".") == 1:
                heads[name.removesuffix(".weight")] = len(weight)
    return heads


def rehearse(model: PreTrainedModel, adapter: str, base: str, entries: int) -> PreTrainedModel:
    """Puts an adapter on a model on the meta device, as far as the merged weights.

    Args:
        model: The model.
        adapter: Folder of the adapter.
        base: What the model was loaded from. For errors.
        entries: Entries of the tokenizer that was saved with the adapter. 0 where there is none.

    Raises:
        UserError: A weight of the adapter has no place in the model, or lacks.
    """
    config = adapter_config(adapter)
    saved = headers([Path(adapter) / ADAPTER_WEIGHTS])
    if hasattr(model.config, "vision_config"):
        return model  # their modules have had several names, which peft translates from the weights
    grow(model, adapter, entries)
    if misfit := _misfit(model, saved):
        raise _no_fit(adapter, base, misfit)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others compute with weights, which are not there
    with without_notes(), torch.device("meta"):
        try:
            wrapped: Any = get_peft_model(model, config)
            result = set_peft_model_state_dict(wrapped, saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise _no_fit(adapter, base, str(error)) from None
        if lacking := _lacking(wrapped, result.missing_keys):
            raise _no_fit(adapter, base, f"missing adapter keys, {', '.join(lacking[:3])}")
        if unused := [key for key in result.unexpected_keys if not _WRITTEN_TWICE.search(key)]:
            raise _no_fit(adapter, base, f"{len(unused)} of its weights have no place there, {', '.join(unused[:3])}")
        try:
            return merge(wrapped)
        except Exception as error:  # peft refuses in several classes
            raise UserError(
                f"The adapter {adapter!r} cannot be merged into {base!r} ({_short(error)}): give a plain LoRA, or a "
                "whole model."
            ) from None


def put_on(model: PreTrainedModel, adapter: str, base: str, entries: int, *, merged: bool) -> PreTrainedModel:
    """Puts an adapter on a model that was rehearsed with it. Arguments as there.

    Raises:
        UserError: It does not fit.
    """
    grow(model, adapter, entries)
    with without_notes():
        # peft would go on with a part of the adapter.
        warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
        try:
            wrapped = PeftModel.from_pretrained(model, adapter)
        except (UserWarning, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _no_fit(adapter, base, str(error)) from None
        # Merged it costs nothing per token; quantized weights would lose by it.
        return merge(wrapped) if merged else wrapped.base_model.model


def merge(wrapped: Any) -> PreTrainedModel:
    """The model with the adapter in its weights, and the outputs that it had with the adapter at their side.

    Each matrix is added to in float32 and then rounded once to its own format.
    """
    _separate(wrapped)
    for layer in wrapped.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        low = [each for each in layer.get_base_layer().parameters() if each.dtype in (torch.float16, torch.bfloat16)]
        formats = [each.dtype for each in low]
        for each in low:
            each.data = each.data.float()
        layer.merge()
        for each, dtype in zip(low, formats, strict=True):
            each.data = each.data.to(dtype)
    model: PreTrainedModel = wrapped.merge_and_unload()
    ends = [end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    if len(ends) == 2 and ends[0] is not ends[1]:
        model.config.tie_word_embeddings = False
        model.config.get_text_config(decoder=True).tie_word_embeddings = False
    return model


def _separate(wrapped: nn.Module) -> None:
    """Gives each place its own weight where an adapter changes one of several places that share one.

    Tied embeddings are such: with the adapter at their side only one end was changed, and merging would change both.
    """
    touched: set[int] = set()
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):
            touched |= {id(each) for each in module.get_base_layer().parameters()}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            touched |= {id(each) for each in module.original_module.parameters()}
        for name, each in module.named_parameters(recurse=False, remove_duplicate=False):
            owners[id(each)].append((module, name))
    for key in touched:
        for module, name in owners[key][1:]:
            weight = getattr(module, name)
            setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))


def grow(model: PreTrainedModel, adapter: str, entries: int) -> None:
    """Gives the embeddings the rows with which an adapter was trained. Rows that no one brings are the others' mean."""
    rows, now = _rows(model, adapter, entries), len(model.get_input_embeddings().weight)
    if rows == now:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    ends = {id(end.weight): end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end}
    with torch.no_grad():
        for weight in ends.values():
            if rows > now:
                weight[now:] = weight[:now].float().mean(dim=0).to(weight.dtype)


def _rows(model: PreTrainedModel, adapter: str, entries: int) -> int:
    names = {module: name for name, module in model.named_modules()}
    ends = [names[end] for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end in names]
    saved = headers([Path(adapter) / ADAPTER_WEIGHTS])
    for end in ends:
        for part in ("weight", "base_layer.weight", "token_adapter.base_layer.weight"):
            if (weight := saved.get(f"{_PREFIX}{end}.{part}")) is not None:
                return len(weight)
    config: Any = adapter_config(adapter)
    trained = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    indices = [i for each in trained.values() for i in each] if isinstance(trained, dict) else trained
    now = len(model.get_input_embeddings().weight)
    return max(max(indices) + 1, entries) if indices and max(indices) >= now else now


def _misfit(model: PreTrainedModel, saved: dict[str, Tensor]) -> str | None:
    """What of a LoRA adapter's weights has no place in the model, in the words of its modules."""
    for key, weight in saved.items():
        name, _, part = key.removeprefix(_PREFIX).partition(".lora_")
        side = {"A.weight": -1, "B.weight": 0}.get(part)
        if side is None or "expert" in name:  # those are stored one by one or fused
            continue
        try:
            place = model.get_submodule(name)
            sizes = [getattr(place, size) for size in ("in_features", "out_features") if hasattr(place, size)]
            sizes = sizes or list(place.weight.shape)
        except AttributeError:
            return f"which has no {name}"
        if (size := weight.shape[side]) not in sizes:
            return f"{name} is {' x '.join(map(str, sizes))} there, and not {size} wide"
    return None


def _lacking(wrapped: Any, missing: list[str]) -> list[str]:
    """What of an adapter's own weights was not saved. A weight that stands in several places is saved once."""
    named = dict(wrapped.named_parameters(remove_duplicate=False))
    lost = set(missing)
    loaded = {id(each) for name, each in named.items() if name not in lost}
    parts = (wrapped.base_model.prefix, "modules_to_save", "trainable_tokens_delta")
    own = [name for name in missing if any(part in name for part in parts) and "expert" not in name]
    return [name for name in own if name in named and id(named[name]) not in loaded]


def _no_fit(adapter: str, base: str, why: str) -> UserError:
    return UserError(
        f"The adapter {adapter!r} does not fit {base!r} ({_short(why)}): give the base model that it was trained on."
    )


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def without_notes() -> Iterator[None]:
    """Without what peft and transformers tell developers while they load: what matters of it is an error of ours."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            yield
    finally:
        log.setLevel(level)
