"""The worker that vLLM starts where the operator steers. This file imports vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.platforms import current_platform

from anchorlm.records import UserError
from anchorlm.vllm._blocks import Span, SteeredBlocks
from anchorlm.vllm._settings import CAPTURE, STEERING, PluginSettings

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_KEPT = 64
"""Requests whose activations are kept until they are fetched. Clients may ask as often as they like."""


class SteeredWorker(Worker):  # type: ignore[misc]  # vLLM is not there where types are checked
    """vLLM's own worker, whose model is steered request by request."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        settings = PluginSettings.from_environment()
        self._states = {} if settings is None else settings.loaded
        # A model that was compiled for a server without our hooks would be taken from vLLM's cache.
        kinds = len(self._states)
        vllm_config.additional_config = {**vllm_config.additional_config, "anchorlm_states": kinds}
        self._captured: dict[str, Tensor] = {}
        super().__init__(vllm_config, *args, **kwargs)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Loads the model, and puts the hooks in before anything is compiled."""
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        self._steered = SteeredBlocks(
            _blocks(runner.model, self.vllm_config),
            width=self.vllm_config.model_config.get_hidden_size(),
            tokens=runner.max_num_tokens,
            requests=runner.max_num_reqs,
            states=[one.shifts for one in self._states.values()],
        )
        self._asked: dict[int, str] = {}
        made = runner._prepare_inputs

        def prepared(scheduler_output: Any, counts: Any, *more: Any, **others: Any) -> Any:
            found = made(scheduler_output, counts, *more, **others)
            self._lay_out([int(count) for count in counts])
            return found

        runner._prepare_inputs = prepared

    def _lay_out(self, counts: list[int]) -> None:
        """Called when the batch of a step is settled: requests stand in it in the order of the runner's own."""
        runner = self.model_runner
        spans, start = [], 0
        self._asked = {}
        names = list(self._states)
        for index, (name, count) in enumerate(zip(runner.input_batch.req_ids, counts, strict=False)):
            request = runner.requests[name]
            extra = (request.sampling_params.extra_args or {}) if request.sampling_params is not None else {}
            read = int(runner.input_batch.num_computed_tokens_cpu[index])
            state, steered = 0, 0
            if (asked := extra.get(STEERING)) is not None:
                state, steered = 1 + names.index(asked), count
                if self._states[asked].positions == "prompt":
                    steered = max(0, min(count, request.num_prompt_tokens - read))
            spans.append(Span(start, start + count, state, steered))
            if extra.get(CAPTURE) and read + count >= request.num_prompt_tokens:
                self._asked[index] = name
            start += count
        self._steered.lay_out(spans)
        self._laid_out = True

    def execute_model(self, scheduler_output: Any) -> Any:
        """Runs a step, and looks whether every block was steered in it."""
        self._laid_out = False
        found = super().execute_model(scheduler_output)
        if self._laid_out:
            self._steered.check()
            for index, name in self._asked.items():
                self._captured.setdefault(name, self._steered.activations(index))
            while len(self._captured) > _KEPT:
                del self._captured[next(iter(self._captured))]
        return found

    def anchorlm_captured(self) -> dict[str, list[list[float]]]:
        """The activations (L, H) at the end of each prompt whose request asked for them; they are given once."""
        found = {name: tensor.tolist() for name, tensor in self._captured.items()}
        self._captured.clear()
        return found


def _blocks(model: nn.Module, config: VllmConfig) -> nn.ModuleList:
    depth = config.model_config.hf_text_config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(f"No list of {depth} blocks was found in the server's model: it cannot be steered.")
