from __future__ import annotations

import os
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

from anchorlm.engine._vllm_faults import in_words
from anchorlm.engine._vllm_process import OWNER
from anchorlm.engine._vllm_wishes import GUARD
from anchorlm.models import CausalModel, VLLMSettings
from anchorlm.records import UserError


def outline(settings: VLLMSettings) -> CausalModel:
    """The model as far as it is known before vLLM starts.

    Raises:
        UserError: vLLM is not installed, or the model is not there or is no whole checkpoint.
    """
    if find_spec("vllm") is None:
        raise UserError("A model in vLLM needs vLLM: pip install 'anchorlm[vllm]'.")
    model = CausalModel.outline(settings)
    if model.origin is not None and (model.origin.adapters or model.origin.base.endswith(".gguf")):
        raise UserError(
            f"{model.name} is no whole checkpoint, as vLLM needs here: write one with anchorlm convert, and name "
            "its folder as path."
        )
    model = replace(model, processor=None)  # images do not go to vLLM
    if isinstance(limit := settings.options.get("max_model_len"), int) and limit > 0:
        vars(model)["context_length"] = min(model.context_length, limit)
    return model


def started(settings: VLLMSettings, model: CausalModel) -> Any:
    """VLLM's engine, when it has loaded the model.

    Raises:
        UserError: vLLM is not installed, cannot run the model, or does not know an option.
    """
    if mine := [name for name in os.environ if name.startswith("ANCHORLM_VLLM") and name != OWNER]:
        raise UserError(f"{mine[0]} is for a vLLM server of your own: unset it where a guard starts vLLM.")
    # What vLLM prints must not stand among answers. Its process cannot be forked from one that has used torch.
    for name, value in {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING",
                        "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}.items():  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(f"vLLM cannot be imported ({error}): pip install 'anchorlm[vllm]'.") from None
    known = {one.name for one in fields(AsyncEngineArgs)}
    if strange := [name for name in settings.options if name not in known]:
        raise UserError(f"vLLM has no option {strange[0]!r}: leave it out of the section options.")
    every = settings.top_logprobs >= model.vocab_size
    own: dict[str, Any] = {
           "max_logprobs": -1 if every else settings.top_logprobs, "revision": settings.revision,
           "dtype": settings.dtype or "auto", "trust_remote_code": settings.trust_remote_code,
           "disable_log_stats": True, "enable_log_requests": False}  # fmt: skip
    if settings.activations:
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the newer runner settles its batches elsewhere
        own["worker_cls"] = "anchorlm.vllm.worker.SteeredWorker"
        own["additional_config"] = {GUARD: True}
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(model=settings.path, **(own | settings.options)))
    except UserError:
        raise
    except Exception as error:  # of vLLM, in many classes
        raise UserError(f"vLLM could not start {model.name} ({in_words(error)}): see what it printed.") from None
