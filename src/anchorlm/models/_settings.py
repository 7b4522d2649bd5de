from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from anchorlm.records import Settings


class ModelSettings(Settings):
    """Which checkpoint to load, and how."""

    path: str = Field(description="Hub id, folder, or folder of a PEFT adapter.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    adapter: str | None = Field(default=None, description="PEFT adapter to put on top: Hub id or folder.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="By default the "
        "checkpoint's own on an accelerator and float32 on a CPU.")  # fmt: skip
    device_map: str | dict[str, int | str] | None = Field(default=None, description="As in transformers.")
    quantization: dict[str, Any] | None = Field(default=None, description="Quantization config, as in transformers.")
    attention: str | None = Field(default=None, description="Attention implementation, as in transformers.")
    chat_template: str | None = Field(default=None, description="Jinja chat template, or a file that holds one.")
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the checkpoint.")

    @field_validator("path", "adapter")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return str(Path(value).expanduser()) if value and value.startswith("~") else value
