from __future__ import annotations

import re
import sys
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from anchorlm.engine import GUARD, join_owner
from anchorlm.records import UserError
from anchorlm.vllm._settings import STEERING, PluginSettings
from anchorlm.vllm._states import SteeringFile, salted

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NAME = "anchorlm.vllm.processor:NamedProcessor"
"""As which the processor is named to a server that must know of it before it has a request."""

WORKER = "anchorlm.vllm.worker.SteeredWorker"

_BEAM = re.compile(r"-beam-\d+")
"""In the name of each request of which a vLLM server makes a beam search."""


def register() -> None:
    """Run by vLLM in each of its processes, before a server's configuration is made.

    An older runner does not load processors by their entry point where it speculates, and says nothing to those that it
    has loaded so of the tokens that are still on their way. Both is seen in the configuration, and only there in time.
    So it is looked at as soon as it is made: in this process's memory, nothing of vLLM is changed on disk.
    """
    join_owner()
    from vllm.engine.arg_utils import EngineArgs

    if took_part():
        return
    made = EngineArgs.create_engine_config
    _look_at_requests()

    @wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> VllmConfig:
        config: VllmConfig = made(self, *args, **kwargs)
        _look_at_beams()
        if (settings := PluginSettings.from_environment()) is not None:
            prepare(config, settings)
        if config.parallel_config.worker_cls == WORKER:
            check_steered(config)
        return config

    checked.checked_by_anchorlm = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = checked


def took_part() -> bool:
    """Whether this process has run `register`: vLLM runs it in all of its own, unless VLLM_PLUGINS leaves it out."""
    from vllm.engine.arg_utils import EngineArgs

    return hasattr(EngineArgs.create_engine_config, "checked_by_anchorlm")


def _look_at_requests() -> None:
    """Steered requests share no keys and values with others: vLLM's prefix cache knows tokens and a salt only.

    And where there is an anchor, there is no beam search.
    """
    from vllm.utils import length_from_prompt_token_ids_or_embeds as length
    from vllm.v1.engine.input_processor import InputProcessor

    made = InputProcessor.process_inputs

    @wraps(made)
    def process_inputs(self: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        if _BEAM.search(request_id):
            _refuse_beams()
        request = made(self, request_id, *args, **kwargs)
        name = (getattr(request.sampling_params, "extra_args", None) or {}).get(STEERING)
        if isinstance(name, str) and (file := PluginSettings.current().steering.get(name)) is not None:
            digest, positions = _state(file)
            # Of a prompt that holds an earlier answer all is steered. That answer's own request left it alone.
            prompt = length(request.prompt_token_ids, request.prompt_embeds) if positions == "prompt" else None
            request.cache_salt = salted(request.cache_salt, digest, prompt)
        return request

    InputProcessor.process_inputs = process_inputs


def _look_at_beams() -> None:
    """In Python, the requests of a beam search are named like any other, so the method itself is looked at."""
    model = getattr(sys.modules.get("vllm.entrypoints.llm"), "LLM", None)
    made = getattr(model, "beam_search", None)
    if model is None or made is None or getattr(made, "checked_by_anchorlm", False):
        return

    @wraps(made)
    def beam_search(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_beams()
        return made(self, *args, **kwargs)

    beam_search.checked_by_anchorlm = True  # type: ignore[attr-defined]
    model.beam_search = beam_search


def _refuse_beams() -> None:
    """VLLM's beam search chooses by what the target says before any processor, so the anchor would have no say.

    Raises:
        VLLMValidationError: There is an anchor. Of vLLM's errors, a server answers this one with status 400.
    """
    if PluginSettings.current().anchor is not None:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError("AnchorLM guides no beam search in this server: leave use_beam_search out.")


@cache
def _state(file: str) -> tuple[str, str]:
    """Digest and positions of a steering, as it is when the first request asks for it.

    A server has loaded it at its start.
    """
    found = SteeringFile.load(file)
    return found.digest, found.positions


def prepare(config: VllmConfig, settings: PluginSettings) -> None:
    """Checks a server's configuration, and puts into it what the server must know before it has a request.

    Raises:
        UserError: The server speculates, or cannot be steered.
    """
    if config.model_config.runner_type == "pooling":
        return
    if settings.anchor is not None and not config.use_v2_model_runner and not is_named(config):
        config.model_config.logits_processors = [*(config.model_config.logits_processors or ()), NAME]
    check_server(config, settings)
    if settings.steering:
        _prepare_steering(config, settings)


def _prepare_steering(config: VllmConfig, settings: PluginSettings) -> None:
    parallel = config.parallel_config
    check_steered(config)
    if parallel.worker_cls != WORKER and not parallel.worker_cls.startswith("vllm."):
        raise UserError(
            f"AnchorLM steers in a worker of its own: start vLLM without --worker-cls {parallel.worker_cls}."
        )
    if settings.loaded:  # every file can be read
        parallel.worker_cls = WORKER


def check_steered(config: VllmConfig) -> None:
    """Whether activations can be read and steered in this server.

    Raises:
        UserError: Its model runner or its stages are in the way.
    """
    if config.use_v2_model_runner:
        raise UserError("AnchorLM steers vLLM's older model runner only: set VLLM_USE_V2_MODEL_RUNNER=0.")
    if config.parallel_config.pipeline_parallel_size > 1:
        raise UserError("AnchorLM steers a model that lies in one stage: start vLLM without --pipeline-parallel-size.")
    if config.speculative_config is not None:
        raise UserError("AnchorLM steers no server that speculates: start vLLM without --speculative-config.")
    if config.kv_transfer_config is not None:
        raise UserError(
            "AnchorLM steers no server that shares its keys and values, because others know tokens only: start vLLM "
            "without --kv-transfer-config."
        )
    if config.additional_config.get(GUARD) and config.parallel_config.data_parallel_size > 1:
        raise UserError("A guard reads activations of one vLLM: leave data_parallel_size out, and start more guards.")


def is_named(config: VllmConfig) -> bool:
    """Whether the server was told the processor's name, besides its entry point."""
    return any(getattr(one, "__name__", one) in (NAME, "NamedProcessor") for one in
               config.model_config.logits_processors or ())  # fmt: skip


def check_server(config: VllmConfig, settings: PluginSettings) -> None:
    """Whether this server can be guided.

    Raises:
        UserError: It speculates, or its processors do not see what it has written.
    """
    if config.speculative_config is not None:
        raise UserError(
            "AnchorLM guides no server that decodes speculatively, because processors are left out there: start vLLM "
            "without --speculative-config, or unset ANCHORLM_VLLM and ANCHORLM_VLLM_ANCHOR."
        )
    if settings.anchor is None:
        return
    if not config.use_v2_model_runner and config.scheduler_config.async_scheduling and not is_named(config):
        raise UserError(
            f"This server hides its last tokens from AnchorLM: start vLLM with --logits-processors {NAME}, or with "
            "--no-async-scheduling."
        )
    model = config.model_config
    if model.is_diffusion:
        raise UserError(
            f"AnchorLM guides answers token by token, and {model.model} writes many at once, where vLLM leaves "
            "processors out: unset ANCHORLM_VLLM and ANCHORLM_VLLM_ANCHOR."
        )
    if model.enable_prompt_embeds:
        raise UserError(
            "AnchorLM's anchor reads the tokens of prompts, and embeddings have none: start vLLM without "
            "--enable-prompt-embeds."
        )
    settings.check_defaults(model.get_diff_sampling_param())
    if model.tokenizer != model.model:
        raise UserError(
            f"AnchorLM reads tokenizer and configuration from one place, but they lie in {model.tokenizer} and "
            f"{model.model}: put the tokenizer into the model's folder, and start vLLM without --tokenizer."
        )
