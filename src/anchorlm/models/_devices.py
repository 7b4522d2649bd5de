from __future__ import annotations

from typing import Any

import torch

from anchorlm.models._settings import ModelSettings


def accelerator() -> str | None:
    """The kind of accelerator that this machine has: `cuda` or `mps`. None where there is only a CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def device_map(settings: ModelSettings, found: str | None) -> Any:
    """Where a model goes, as transformers is told: where its settings say, else to the accelerator.

    Args:
        settings: Of the model.
        found: The kind of accelerator that there is.
    """
    if settings.device_map is not None or settings.dtype in ("int8", "int4") or found is None:
        return settings.device_map
    return "auto" if found == "cuda" else {"": found}  # over all of several


def default_place(found: str | None) -> str:
    """Where a model goes that does not say it, in one line."""
    if found is None:
        return "cpu, in float32"
    return f"{found}, in the checkpoint's dtype (device_map = 'cpu' keeps a model on the CPU)"
