from __future__ import annotations

from pathlib import Path

import typer

from anchorlm.cli._loading import quiet_libraries
from anchorlm.models import ModelSettings, check_conversion, convert


def run(source: str, folder: Path, dtype: str, adapter: str | None) -> None:
    """Converts, and says what there is now."""
    settings = ModelSettings.parse({"path": source, "dtype": dtype, "adapter": adapter}, where="a model")
    check_conversion(settings, folder)
    quiet_libraries()
    model = convert(settings, folder)
    size = sum(parameter.numel() for parameter in model.model.parameters())
    typer.echo(f"{folder}: {model.model.config.model_type}, {size / 1e6:.1f}M parameters in {dtype}. "
               f'Use it as path = "{folder}".')  # fmt: skip
