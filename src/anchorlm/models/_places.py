from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import has_file

from anchorlm.models._gguf import gguf_file
from anchorlm.records import UserError

_log = logging.getLogger("anchorlm")

_PICKLED = "only pickled weights, which can run code: convert them once with save_pretrained"


def check_folder(path: str) -> None:
    """Whether a model could be in a folder, if `path` is none of the Hub's ids.

    Raises:
        UserError: There is no such folder, or it has no configuration or no safetensors.
    """
    if gguf_file(path) is not None:
        return
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if not folder.exists() and looks_local:
        raise UserError(f"There is no folder {path!r}: give the path of a model folder, or a Hub id such as org/name.")
    if folder.is_file():
        raise UserError(f"{path!r} is a file: give the folder that holds config.json and the safetensors.")
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{path!r} holds no config.json: give the folder that holds it beside the safetensors.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise UserError(f"{path!r} holds {_PICKLED if pickled else 'no weights: download its *.safetensors'}.")


def check_repository(path: str, revision: str | None, stem: str = "model", pickled: str = "pytorch_model") -> None:
    """Whether a repository on the Hub, as far as it can be asked, offers its weights as safetensors.

    Raises:
        UserError: It has only pickled ones.
    """
    if Path(path).exists():
        return
    try:
        if any(has_file(path, f"{stem}.safetensors{index}", revision=revision) for index in ("", ".index.json")):
            return
        only_pickled = any(has_file(path, f"{pickled}.bin{index}", revision=revision) for index in ("", ".index.json"))
    except OSError:  # gated, or not there: whoever wants a file of it says so
        return
    if only_pickled:
        raise UserError(f"{path!r} holds {_PICKLED}, or name a revision of it that has safetensors.")


def check_adapter(adapter: str, model: PreTrainedModel, base: str) -> None:
    """Whether an adapter is there, as safetensors, and could have been trained on a model; its weights are not read.

    Raises:
        UserError: It is not there, is pickled, or does not fit the model.
    """
    check_folder(adapter)
    try:
        named = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{adapter!r} is no PEFT adapter: give the folder or Hub id of one.") from None
    check_repository(adapter, None, "adapter_model", "adapter_model")
    file = Path(adapter) / "adapter_model.safetensors"
    if file.parent.is_dir():
        # peft would fall back to pickled weights, which can run code.
        if not file.is_file():
            raise UserError(f"{adapter!r} holds no adapter_model.safetensors: save the adapter as safetensors.")
        if misfit := _misfit(model, file):
            raise UserError(
                f"The adapter {adapter!r} does not fit {base!r} ({misfit}): give the base model that it was trained on."
            )
    if named and not Path(base).is_file() and Path(named).name.casefold() != Path(base).name.casefold():
        _log.warning(
            "The adapter %r names %r as its base model and is put on %r: make sure that they are the same.",
            adapter, named, base,
        )  # fmt: skip


def adapter_heads(adapters: Sequence[str]) -> dict[str, int]:
    """The modules that adapters on disk bring whole, as those of classifiers do their head, with the rows of each."""
    heads: dict[str, int] = {}
    for adapter in adapters:
        file = Path(adapter) / "adapter_model.safetensors"
        if not file.is_file():
            continue
        try:
            with safe_open(file, framework="pt") as saved:
                for key in saved.keys():  # noqa: SIM118
                    name = key.removeprefix("base_model.model.")
                    if name.endswith(".weight") and ".lora_" not in name and name.count(".") == 1:
                        heads[name.removesuffix(".weight")] = saved.get_slice(key).get_shape()[0]
        except SafetensorError:
            continue  # `check_adapter` says what is wrong with it
    return heads


def _misfit(model: PreTrainedModel, file: Path) -> str | None:
    """What of a LoRA adapter's weights has no place in the model; the file's header knows all names and shapes."""
    if hasattr(model.config, "vision_config"):
        return None  # their modules have had several names
    try:
        with safe_open(file, framework="pt") as saved:
            for key in saved.keys():  # noqa: SIM118
                name, _, part = key.removeprefix("base_model.model.").partition(".lora_")
                side = {"A.weight": -1, "B.weight": 0}.get(part)
                if side is None or "expert" in name:  # those are stored one by one or fused
                    continue
                try:
                    place = model.get_submodule(name)
                    sizes = [getattr(place, size) for size in ("in_features", "out_features") if hasattr(place, size)]
                    sizes = sizes or list(place.weight.shape)
                except AttributeError:
                    return f"which has no {name}"
                if (size := saved.get_slice(key).get_shape()[side]) not in sizes:
                    return f"{name} is {' x '.join(map(str, sizes))} there, and not {size} wide"
    except SafetensorError as error:
        raise UserError(f"{str(file)!r} is no whole file of safetensors ({error}): download it again.") from None
    return None


def adapter_base(folder: Path) -> str:
    """The base model that an adapter's folder names; a folder beside it, if there is one of that name.

    Raises:
        UserError: It names none.
    """
    try:
        name = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except ValueError:
        raise UserError(f"{str(folder / 'adapter_config.json')!r} is no JSON: download the adapter again.") from None
    if not name:
        raise UserError(
            f"The adapter in {str(folder)!r} does not name its base model in adapter_config.json: give the base as "
            "path, and the adapter as adapter."
        )
    beside = (folder / name).resolve()
    return str(beside) if beside.exists() else str(name)
