from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from anchorlm.models._settings import ModelSettings
from anchorlm.records import Access

_NOT_THERE = ("gguf_file", "adapter", "device_map", "quantization", "attention")
"""What is said in vLLM's own words, in `options`, or not at all."""

VLLM_ACCESS = {False: Access.LOGPROBS, True: Access.LOGPROBS | Access.ACTIVATIONS}
"""What a model in vLLM offers, by the setting `activations`."""

UNREAD = "set activations = true in its section"
"""How the activations of a model in vLLM can be had."""

_OURS = ("model", "tokenizer", "revision", "dtype", "trust_remote_code", "max_logprobs", "logprobs_mode",
         "skip_tokenizer_init", "runner", "logits_processors", "worker_cls", "additional_config")  # fmt: skip
"""Options of vLLM that follow from the other settings, or that a guard relies on."""


class VLLMSettings(ModelSettings):
    """A model that vLLM runs for this guard, in a process of its own."""

    engine: Literal["vllm"] = Field(description="Always vllm.")
    top_logprobs: int = Field(default=200, ge=2, le=1_000_000, description="Likeliest tokens that are read at a mixed "
                              "step. As many as the model has tokens: all of them.")  # fmt: skip
    activations: bool = Field(default=False, description="Whether gates and critics can read the model, and "
                              "InferAligner can steer it. It takes memory and time in every step.")  # fmt: skip
    timeout: float = Field(default=600.0, gt=0, description="Seconds for one answer.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of vLLM's engine, such as "
                                    "gpu_memory_utilization or tensor_parallel_size.")  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in _NOT_THERE:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for a model that is loaded here: leave it out, or leave engine out")
        if self.dtype in ("int8", "int4"):
            raise ValueError(f"dtype = '{self.dtype}' is for a model loaded here: give quantization in options")
        for name in _OURS:
            if name in self.options:
                raise ValueError(f"{name} cannot be set in options: leave it out there")
        if self.activations and self.options.get("quantization") is not None:
            raise ValueError("what is fitted on a model does not fit it quantized: leave quantization out")
        return self
