from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import has_file
from transformers.utils.peft_utils import find_adapter_config_file

from anchorlm.models._bases import base_named
from anchorlm.models._endpoint_settings import EndpointSettings
from anchorlm.models._gguf import check_options, file_digest
from anchorlm.models._paths import ADAPTER, INDEX, PICKLED, check_folder, gguf_file
from anchorlm.models._settings import ModelSettings
from anchorlm.models._weights import WEIGHTS, digest, digest_of, weight_files
from anchorlm.records import UserError

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_OF_TRAINING = {"base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping", "task_type"}
"""What of an adapter's settings changes no output."""


class Kind(Enum):
    """What lies at a path."""

    CHECKPOINT = auto()
    ADAPTER = auto()


def kind_of(path: str, revision: str | None = None) -> Kind:
    """Of what kind the model at a path is: every way to load one asks here.

    Raises:
        UserError: It is a folder that holds no model.
    """
    check_folder(path)
    if gguf_file(path) is not None:
        return Kind.CHECKPOINT
    if (folder := Path(path)).is_dir():
        return Kind.ADAPTER if (folder / ADAPTER).is_file() else Kind.CHECKPOINT
    try:
        found = find_adapter_config_file(path, revision=revision)
    except (OSError, ValueError):  # gated, or not there: whoever wants a file of it says so
        found = None
    return Kind.ADAPTER if found else Kind.CHECKPOINT


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        base: The checkpoint: a folder or an id of the Hub.
        revision: Of the checkpoint on the Hub.
        adapters: The folders of the adapters on it, in the order in which they are put on.
    """

    base: str
    revision: str | None = None
    adapters: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Names the weights of checkpoint and adapters as they are stored. Empty where they are not here.

        Raises:
            UserError: A file is damaged.
        """
        if (file := gguf_file(self.base)) is not None:
            parts: list[Any] = [file_digest(file)]
        elif (files := weight_files(self.base, self.revision)) is not None:
            parts = [digest(files)]
        else:
            return ""
        for adapter in self.adapters:
            settings = _read(Path(adapter) / ADAPTER)
            kept = {name: value for name, value in settings.items() if value and name not in _OF_TRAINING}
            kept = {name: sorted(value) if name == "target_modules" else value for name, value in kept.items()}
            parts += [kept, digest([Path(adapter) / ADAPTER_WEIGHTS])]
        return digest_of(parts)


def origin(settings: ModelSettings) -> Origin:
    """The checkpoint that a model comes down to, and the adapters to put on it: a base may itself be an adapter.

    Raises:
        UserError: A folder is not there or holds no model, an adapter does not name its base, or the model is on
            another server.
    """
    if isinstance(settings, EndpointSettings):
        raise UserError(f"{settings.name} cannot be loaded, as is needed here: give its folder or Hub id as path.")
    path, revision = _place(settings), settings.revision
    chain = [adapter_folder(settings.adapter)] if settings.adapter else []
    while kind_of(path, revision) is Kind.ADAPTER:
        folder = adapter_folder(path, revision)
        if folder in chain:
            raise UserError(f"The adapter {folder!r} names itself as its base model: give the base as path.")
        chain.insert(0, folder)
        if _is_whole(path, revision):
            break
        path, revision = adapter_base(folder)
    if (file := gguf_file(path)) is not None:
        check_options(file, settings.dtype, settings.quantization)
    return Origin(path, revision, tuple(chain))


def _place(settings: ModelSettings) -> str:
    """The path, down to the file of a folder that is named."""
    file = gguf_file(settings.path, settings.gguf_file)
    return settings.path if file is None else str(file)


def adapter_folder(path: str, revision: str | None = None) -> str:
    """The folder of an adapter. One of the Hub is downloaded.

    Raises:
        UserError: There is none, or only a pickled one.
    """
    check_folder(path)
    if Path(path).is_dir():
        return path
    check_repository(path, revision, "adapter_model", "adapter_model")
    wanted = [ADAPTER, ADAPTER_WEIGHTS, "*token*", "*.jinja", "vocab.*", "merges.txt", "added_tokens.json"]
    try:
        return str(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as error:  # of the Hub, in many classes
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"The adapter {path!r} could not be loaded ({said}): check its name, your access and the network."
        ) from None


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
        raise UserError(f"{path!r} holds {PICKLED}, or name a revision of it that has safetensors.")


def adapter_base(folder: str) -> tuple[str, str | None]:
    """The base model that an adapter names, and its revision. A folder of that name next to the adapter comes first,
    and then the package that brings a file of that name.

    Raises:
        UserError: It names none, or a folder or package that is not here.
    """
    settings = _read(Path(folder) / ADAPTER)
    name = settings.get("base_model_name_or_path")
    if not name:
        raise UserError(
            f"The adapter in {folder!r} does not name its base model in {ADAPTER}: give the base as path, and the "
            "adapter as adapter."
        )
    if (near := (Path(folder) / name).resolve()).exists():
        return str(near), None
    if (base := base_named(str(name))) is not None:
        return str(base.path()), None
    try:
        check_folder(str(name))
    except UserError as error:
        said = str(error).partition(":")[0]
        raise UserError(
            f"{said}, which the adapter {folder!r} names as its base model: give the base as path, and the adapter as "
            "adapter."
        ) from None
    return str(name), settings.get("revision")


def _is_whole(path: str, revision: str | None) -> bool:
    """Whether a checkpoint lies in the same place as an adapter, as transformers has it then."""
    if Path(path).is_dir():
        has = [(Path(path) / name).is_file() for name in ("config.json", WEIGHTS, INDEX)]
        if not (Path(path) / ADAPTER_WEIGHTS).is_file():
            return False
    else:
        try:
            has = [has_file(path, name, revision=revision) for name in ("config.json", WEIGHTS, INDEX)]
        except OSError:
            return False
    return has[0] and any(has[1:])


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{str(file)!r} is no JSON: download the adapter again.")
    return settings
