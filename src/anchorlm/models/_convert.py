from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from anchorlm.models._paths import gguf_file
from anchorlm.models._settings import ModelSettings
from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.models._causal import CausalModel


def check_conversion(settings: ModelSettings, folder: Path) -> None:
    """Whether a conversion can begin.

    Raises:
        UserError: The path is an ordinary folder already, or the folder to write is there.
    """
    if gguf_file(settings.path, settings.gguf_file) is None and settings.adapter is None:
        from anchorlm.models._places import Kind, kind_of  # brings transformers

        if kind_of(settings.path, settings.revision) is not Kind.ADAPTER:
            raise UserError(f"{settings.path!r} is no GGUF file and no adapter: only these are converted.")
    if settings.dtype in ("int8", "int4"):
        raise UserError(
            f"dtype = '{settings.dtype}' is how weights are held, not how they are written: give bfloat16 or float32."
        )
    if folder.exists():
        raise UserError(f"{str(folder)!r} is there already: give the name of a new folder.")


def convert(settings: ModelSettings, folder: Path) -> CausalModel:
    """Writes a GGUF file or an adapter as an ordinary folder: configuration, safetensors, tokenizer, chat template.

    The folder appears whole, or not at all.

    Args:
        settings: The file or the adapter, and in which dtype its weights are written.
        folder: Where to. It must not be there yet.

    Raises:
        UserError: The path is an ordinary folder already or cannot be loaded, or the folder to write is there or cannot
            be written.
    """
    check_conversion(settings, folder)
    from anchorlm.models._causal import CausalModel

    model = CausalModel.load(settings)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        model.model.save_pretrained(partial)
        (model.processor or model.tokenizer).save_pretrained(partial)
        for file in partial.glob("*.safetensors"):
            shutil.copymode(partial / "config.json", file)  # safetensors gives it to its owner alone
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model
