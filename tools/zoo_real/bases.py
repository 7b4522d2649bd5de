"""The two models that come as packages, and what was made on them."""

from __future__ import annotations

from pathlib import Path

from anchorlm import models
from anchorlm.models import CausalModel
from anchorlm.records import UserError

BASES = {name: models.BASES[f"real-{name}"] for name in ("smollm2", "gemma")}

BUILD = Path("build/zoo-real")
"""Where everything is kept that was made."""

MEMBERS = {
    "chat": "smollm2",
    "chat-early": "smollm2",
    "anchor": "gemma",
    "finance": "smollm2",
    "finance-base": "smollm2",
    "medicine": "smollm2",
    "cost": "gemma",
    "judge": "gemma",
    "reward": "gemma",
}
"""The base of each member."""


def load(name: str, *, dtype: str = "bfloat16") -> CausalModel:
    """A base, ready to run or to train."""
    return CausalModel.from_pretrained(BASES[name].path(), dtype=dtype)


def member(name: str, build: Path, *, dtype: str = "bfloat16") -> CausalModel:
    """A member that was made in the build folder."""
    adapter = build / name
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"There is no member {name} in {str(build)!r}: make it with `python -m tools.zoo_real {name}`.")
    return CausalModel.from_pretrained(BASES[MEMBERS[name]].path(), adapter=str(adapter), dtype=dtype)
