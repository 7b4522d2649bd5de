from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from anchorlm.records import UserError
from anchorlm.vllm._settings import PluginSettings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NAME = "anchorlm.vllm:NamedProcessor"
"""As which the processor is named to a server that must know of it before it has a request."""


def register() -> None:
    """Run by vLLM in each of its processes, before a server's configuration is made.

    An older runner does not load processors by their entry point where it speculates, and says nothing to those that it
    has loaded so of the tokens that are still on their way. Both is seen in the configuration, and only there in time.
    So it is looked at as soon as it is made: in this process's memory, nothing of vLLM is changed on disk.
    """
    from vllm.engine.arg_utils import EngineArgs

    made = EngineArgs.create_engine_config
    if getattr(made, "checked_by_anchorlm", False):
        return

    @wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> VllmConfig:
        config: VllmConfig = made(self, *args, **kwargs)
        if PluginSettings.from_environment() is not None:
            prepare(config)
        return config

    checked.checked_by_anchorlm = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = checked


def prepare(config: VllmConfig) -> None:
    """Checks a server's configuration, and names the processor in it where the older runner must know.

    Raises:
        UserError: The server speculates.
    """
    if config.model_config.runner_type == "pooling":
        return
    if not config.use_v2_model_runner and not is_named(config):
        config.model_config.logits_processors = [*(config.model_config.logits_processors or ()), NAME]
    check_server(config)


def is_named(config: VllmConfig) -> bool:
    """Whether the server was told the processor's name, besides its entry point."""
    return any(getattr(one, "__name__", one) in (NAME, "NamedProcessor") for one in
               config.model_config.logits_processors or ())  # fmt: skip


def check_server(config: VllmConfig) -> None:
    """Whether this server can be guided.

    Raises:
        UserError: It speculates, or its processors do not see what it has written.
    """
    if config.speculative_config is not None:
        raise UserError(
            "AnchorLM guides no server that decodes speculatively, because processors are left out there: start vLLM "
            "without --speculative-config, or unset ANCHORLM_VLLM and ANCHORLM_VLLM_ANCHOR."
        )
    if not config.use_v2_model_runner and config.scheduler_config.async_scheduling and not is_named(config):
        raise UserError(
            f"This server hides its last tokens from AnchorLM: start vLLM with --logits-processors {NAME}, or with "
            "--no-async-scheduling."
        )
    model = config.model_config
    if model.tokenizer != model.model:
        raise UserError(
            f"AnchorLM reads tokenizer and configuration from one place, but they lie in {model.tokenizer} and "
            f"{model.model}: put the tokenizer into the model's folder, and start vLLM without --tokenizer."
        )
