"""What a path says of a model by itself. Nothing here imports torch: a missing folder is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from anchorlm.records import UserError

if TYPE_CHECKING:
    from anchorlm.models._settings import ModelSettings

ADAPTER, INDEX = "adapter_config.json", "model.safetensors.index.json"

SUFFIX = ".gguf"

PICKLED = "only pickled weights, which can run code: convert them once with save_pretrained"


def check_paths(settings: ModelSettings) -> None:
    """Whether a model and its adapter could lie where they are said to lie.

    Raises:
        UserError: There is no such file or folder, or it holds no model.
    """
    from anchorlm.models._endpoint_settings import EndpointSettings

    if isinstance(settings, EndpointSettings):
        settings.check()
        return
    check_folder(str(gguf_file(settings.path, settings.gguf_file) or settings.path))
    if settings.adapter:
        check_folder(settings.adapter)


def gguf_file(path: str, name: str | None = None) -> Path | None:
    """The file that a path means. None if it means no GGUF.

    Args:
        path: A file that ends in .gguf, a folder, or an id of the Hub.
        name: The file's name in a folder.

    Raises:
        UserError: There is no such file, or the folder holds nothing else and no name is given.
    """
    place = Path(path)
    if path.lower().endswith(SUFFIX) and not place.is_dir():
        if name is not None:
            raise UserError(f"{path!r} is a file already: leave gguf_file out, or give the folder as path.")
        if not place.is_file():
            raise UserError(f"There is no file {path!r}: give the path of a GGUF file on this machine.")
        return place
    if name is not None:
        if not place.is_dir():
            raise UserError(f"gguf_file names a file in a folder, but {path!r} is none: give the file as path.")
        if Path(name).name != name or not (place / name).is_file():
            raise UserError(f"There is no file {name!r} in {path!r}: give the name of one of its GGUF files.")
        return place / name
    if place.is_dir() and not any((place / one).is_file() for one in ("config.json", "adapter_config.json")):
        found = sorted(one.name for one in place.glob(f"*{SUFFIX}"))
        if found:
            raise UserError(
                f"{path!r} holds GGUF files: say which with gguf_file, for example gguf_file = {found[0]!r}."
            )
    return None


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
    if not (folder / "config.json").is_file() and not (folder / ADAPTER).is_file():
        raise UserError(f"{path!r} holds no config.json: give the folder that holds it next to the safetensors.")
    if not any(folder.glob("*.safetensors")) and not (folder / INDEX).is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise UserError(f"{path!r} holds {PICKLED if pickled else 'no weights: download its *.safetensors'}.")
