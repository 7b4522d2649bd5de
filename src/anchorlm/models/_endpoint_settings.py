from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from anchorlm.models._bases import located
from anchorlm.models._settings import ModelSettings
from anchorlm.models._vllm_settings import VLLMSettings
from anchorlm.records import Folder, Place, UserError

_HERE = ("path", "gguf_file", "adapter", "dtype", "device_map", "quantization", "attention")
"""What can be said of a model only where it is loaded by us."""


class EndpointSettings(ModelSettings):
    """A model that another server runs, behind an OpenAI-compatible address."""

    path: Folder = Field(default="", description="Not for endpoints.")
    endpoint: str = Field(description="Address of the server's API, such as http://127.0.0.1:8000/v1.")
    model: str | None = Field(default=None, min_length=1, description="The model's id on the server; None: the only "
                              "one there.")  # fmt: skip
    tokenizer: Folder | None = Field(default=None, description="Folder, GGUF file or Hub id with the tokenizer of this "
                                  "model; None: the server writes the conversation.")  # fmt: skip
    key_env: str | None = Field(default=None, min_length=1, description="Environment variable with the API key.")
    key_file: Folder | None = Field(default=None, description="File with the API key.")
    prompts: Literal["auto", "completions", "chat"] = Field(default="auto", description="Where prompts go: auto is "
        "/completions where a tokenizer is given and the server takes them, else /chat/completions.")  # fmt: skip
    top_logprobs: int = Field(default=200, ge=2, le=200_000, description="Likeliest tokens to ask for at a mixed step.")
    context: int | None = Field(default=None, ge=2, description="Tokens that the model reads, where the server does "
                                "not say it.")  # fmt: skip
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one call, retries included.")
    retries: int = Field(default=4, ge=0, le=20, description="How often a call that failed is sent again.")
    connections: int = Field(default=32, ge=1, le=1024, description="Calls under way at once.")

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or any(letter <= " " for letter in value):
            raise ValueError("it is no address: write it as http://host:port/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("it holds more than an address: give the key with key_env or key_file")
        return value.rstrip("/")

    @field_validator("tokenizer")
    @classmethod
    def _is_found(cls, value: str | None) -> str | None:
        return located(str(Path(value).expanduser()) if value.startswith("~") else value) if value else None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in _HERE:
            if name in self.model_fields_set:
                raise ValueError(f"{name} is for a model that is loaded here: leave it out, or leave endpoint out")
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("a key comes from one place: give key_env or key_file")
        if self.prompts == "completions" and self.tokenizer is None:
            raise ValueError("prompts = 'completions' are written with the model's tokenizer: give tokenizer, too")
        if self.chat_template is not None and self.tokenizer is None:
            raise ValueError("the server writes the conversation: leave chat_template out, or give tokenizer, too")
        return self

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.model or 'the model'} at {self.endpoint}"

    @property
    def tokenizer_settings(self) -> ModelSettings | None:
        """Where the tokenizer is loaded from."""
        if self.tokenizer is None:
            return None
        given = {"revision": self.revision, "chat_template": self.chat_template}
        return ModelSettings(path=self.tokenizer, trust_remote_code=self.trust_remote_code, **given)

    def key(self) -> str | None:
        """The API key.

        Raises:
            UserError: The place that should hold it holds none.
        """
        if self.key_env is not None:
            found = os.environ.get(self.key_env, "")
            remedy = f"The environment variable {self.key_env} holds no API key: set it, or leave key_env out."
        elif self.key_file is not None:
            try:
                found = Path(self.key_file).expanduser().read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                raise UserError(
                    f"The file of the API key, {self.key_file!r}, cannot be read: check key_file."
                ) from None
            remedy = f"The file {self.key_file!r} holds no API key: write it there, or leave key_file out."
        else:
            return None
        key = found.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(remedy)
        return key

    def check(self) -> None:
        """What can be known before anything is asked or loaded.

        Raises:
            UserError: There is no key where one should be, or no tokenizer.
        """
        self.key()
        if self.tokenizer is None:
            return
        local = self.tokenizer.startswith((".", "/", "~")) or self.tokenizer.count("/") > 1
        if local and not Path(self.tokenizer).exists():
            raise UserError(f"There is no tokenizer in {self.tokenizer!r}: give a folder, a GGUF file or a Hub id.")


def model_settings(values: Any, where: str = "a model") -> Any:
    """The settings that a section of a recipe stands for. What is no section is left as it is.

    Raises:
        UserError: They are those of an endpoint or of vLLM, and do not fit. Or another engine is meant.
    """
    if isinstance(values, dict) and "endpoint" in values:
        return EndpointSettings.parse(values, where=f"{where} behind an endpoint")
    if isinstance(values, dict) and "engine" in values:
        if values["engine"] != "vllm":
            raise UserError(
                f"A guard starts no engine {values['engine']!r:.80}, only vllm: give a server that runs already as "
                f'endpoint = "http://host:port/v1", and leave engine out to load {where} here.'
            )
        return VLLMSettings.parse(values, where=f"{where} in vLLM")
    return values


def _source(value: Any) -> Any:
    return {"path": str(value)} if isinstance(value, str | Path) else model_settings(value)


ModelSource = Annotated[SerializeAsAny[ModelSettings], Place(), BeforeValidator(_source)]
"""Settings of a model, for which its path alone will do. With an `endpoint`, of one that another server runs. With
`engine = "vllm"`, of one that vLLM runs."""
