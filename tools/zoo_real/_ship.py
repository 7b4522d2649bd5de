"""Puts what was made into the package: adapters in half precision that name their base by the name of its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anchorlm.models import BASES, SHIPPED
from anchorlm.records import UserError
from anchorlm.zoo import real_members
from tools.zoo_real._task_card import task_card
from tools.zoo_real._tasks import TASKS

_NOTICE = (
    "\nTuned from Gemma 3 270M. Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms; so is this adapter.\n"
)
_MOST = 30_000_000
"""Bytes of all members together."""


def ship(build: Path, names: Sequence[str], to: Path = SHIPPED) -> list[Path]:
    """Copies members of a build folder into the package.

    Args:
        build: Holds a folder NAME for each member real-NAME.
        names: With or without `real-`. None for all that are there.
        to: Where the members lie.

    Raises:
        UserError: One is not there, its base is not known, or all together are too large.
    """
    known = {one.name.removeprefix("real-"): one for one in real_members() if one.role != "base"}
    chosen = [name.removeprefix("real-") for name in names] or [name for name in known if (build / name).is_dir()]
    for name in chosen:
        if name not in known:
            raise UserError(f"There is no member {name!r}; choose some of {', '.join(known)}.")
        if not (build / name / "adapter_config.json").is_file():
            raise UserError(f"There is no member {name} in {str(build)!r}: make it with `make zoo-real`.")
    for name in chosen:
        if name in TASKS:
            (build / name / "README.md").write_text(task_card(name, build / name), encoding="utf-8")
        if not (build / name / "README.md").is_file():
            raise UserError(f"The member {name} has no card: write it with `python -m tools.zoo_real measure {name}`.")
    placed = [_placed(build / name, to / f"real-{name}", known[name].base.file) for name in chosen]
    size = sum(file.stat().st_size for file in to.glob("real-*/**/*") if file.is_file())
    if size > _MOST:
        raise UserError(f"The members come to {size:,} bytes, and {_MOST:,} are shipped at most: take a lower rank.")
    return placed


def _placed(made: Path, folder: Path, base: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for old in filter(Path.is_file, folder.iterdir()):  # artifacts have folders of their own
        old.unlink()
    for file in sorted(made.glob("*.safetensors")):
        save_file(_half(load_file(file)), folder / file.name, metadata={"format": "pt"})
    settings = json.loads((made / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = base
    settings["target_modules"] = sorted(settings["target_modules"])
    kept = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    (folder / "adapter_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for name in ("chat_template.jinja", "config.json", "settings.json"):
        if (made / name).is_file():
            shutil.copyfile(made / name, folder / name)
    card = (made / "README.md").read_text("utf-8")
    if base == BASES["real-gemma"].file and "Gemma Terms of Use" not in card:
        card += _NOTICE
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was float32 as float16, in the order of the names: the same weights make the same file."""
    return {
        name: weight.half() if weight.dtype == torch.float32 else weight for name, weight in sorted(weights.items())
    }
