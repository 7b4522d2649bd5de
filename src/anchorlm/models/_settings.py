from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from anchorlm.models._bases import located
from anchorlm.records import Folder, Place, Settings, checked_options


class ModelSettings(Settings):
    """Which checkpoint to load, and how."""

    path: Folder = Field(description="Hub id, folder, folder of a PEFT adapter, GGUF file, or the "
        "name of a shipped model, such as real-finance.")  # fmt: skip
    gguf_file: str | None = Field(default=None, description="GGUF file in the folder that path names.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    adapter: Folder | None = Field(default=None, description="PEFT adapter to put on top: Hub id or folder.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] | None = Field(
        default=None, description="`auto`: the checkpoint's own, which is also the default on an accelerator; float32 "
        "on a CPU, and bfloat16 for the shipped adapters on real models. `int8`, `int4`: weights of one byte, or of "
        "half a byte, on a CPU.")  # fmt: skip
    device_map: str | dict[str, int | str] | None = Field(default=None, description="As in transformers; by default "
        "the accelerator, if there is one.")  # fmt: skip
    quantization: dict[str, Any] | None = Field(default=None, description="Quantization config, as in transformers; "
        "`quantization_config` will do.",
        validation_alias=AliasChoices("quantization", "quantization_config"))  # fmt: skip
    attention: str | None = Field(default=None, description="Attention implementation, as in transformers; "
        "`attn_implementation` will do.",
        validation_alias=AliasChoices("attention", "attn_implementation"))  # fmt: skip
    chat_template: Annotated[str, Place()] | None = Field(default=None, description="Jinja chat template, a file that "
        "holds one, or the name of one of several that the checkpoint brings.")  # fmt: skip
    template: dict[str, Any] = Field(default_factory=dict, description="Variables of the chat template, such as "
        "enable_thinking; `chat_template_kwargs` will do.",
        validation_alias=AliasChoices("template", "chat_template_kwargs"))  # fmt: skip
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the checkpoint.")

    @classmethod
    def placed(cls, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """See `Settings`. Other kinds of models have places of their own."""
        found = super().placed(values, folder)
        for kind in cls.__subclasses__():
            found = kind.placed(found, folder)
        return found

    @model_serializer(mode="wrap")
    def _brief(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without an empty `template`: reports and artifacts of before name the same model by the same data."""
        written: dict[str, Any] = write(self)
        return written if self.template else {name: one for name, one in written.items() if name != "template"}

    @field_validator("template")
    @classmethod
    def _variables(cls, values: dict[str, Any]) -> dict[str, Any]:
        return checked_options(values)

    @field_validator("dtype", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value

    @field_validator("path", "adapter")
    @classmethod
    def _found(cls, value: str | None) -> str | None:
        if value and value.startswith("~"):
            return str(Path(value).expanduser())
        return located(value) if value else value
