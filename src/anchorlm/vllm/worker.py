"""The worker that vLLM starts where activations are read or steered. This file imports vLLM."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from vllm.platforms import current_platform

from anchorlm.engine import GUARD, PLACES, ROOM, Wishes
from anchorlm.records import DefenseError, UserError
from anchorlm.vllm._blocks import Span, SteeredBlocks
from anchorlm.vllm._reading import Reading
from anchorlm.vllm._settings import CAPTURE, STEERING, PluginSettings
from anchorlm.vllm._start import check_steered

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_log = logging.getLogger("anchorlm")

_KEPT, _KEPT_FOR_GUARD = 64, 1024
"""Requests whose activations are kept until they are fetched. Clients may ask as often as they like."""

_SUMMED = frozenset({
    "ApertusDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer", "GemmaDecoderLayer", "Glm4DecoderLayer",
    "InternLMDecoderLayer", "LlamaDecoderLayer", "MistralDecoderLayer", "MixtralDecoderLayer", "Qwen2DecoderLayer",
    "Qwen2MoeDecoderLayer", "Qwen3DecoderLayer", "Qwen3MoeDecoderLayer",
})  # fmt: skip
"""Blocks of which `hidden + residual` is the stream, as vLLM 0.32 writes them. Of others, one of the two is already."""


class SteeredWorker(Worker):  # type: ignore[misc]  # vLLM is not there where types are checked
    """vLLM's own worker, whose model is read and steered request by request."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        check_steered(vllm_config)
        settings = PluginSettings.from_environment()
        self._files = {} if settings is None else settings.loaded
        # A model that was compiled for a server without our hooks would be taken from vLLM's cache.
        states = len(self._files) + ROOM
        self._guarded = bool(vllm_config.additional_config.get(GUARD))
        told = {"anchorlm_states": states, "anchorlm_places": PLACES}
        vllm_config.additional_config = {**vllm_config.additional_config, **told}
        self._broken: DefenseError | None = None
        self._captured: dict[str, Tensor] = {}
        self._readings: dict[str, Reading] = {}
        super().__init__(vllm_config, *args, **kwargs)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Loads the model, and puts the hooks in before anything is compiled."""
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        self._steered = SteeredBlocks(
            _blocks(runner.model, self.vllm_config),
            width=self.vllm_config.model_config.get_hidden_size(),
            dtype=self.vllm_config.model_config.dtype,
            tokens=runner.max_num_tokens,
            places=PLACES,
            states=len(self._files) + ROOM,
        )
        for state, file in enumerate(self._files.values(), 1 + ROOM):
            self._steered.put(state, file.shifts)
        self._reads: dict[int, tuple[Wishes, int, int]] = {}
        self._chosen: dict[int, str] = {}
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
        self._reads, self._chosen = {}, {}
        for index, (name, count) in enumerate(zip(runner.input_batch.req_ids, counts, strict=False)):
            request = runner.requests[name]
            extra = (request.sampling_params.extra_args or {}) if request.sampling_params is not None else {}
            read = int(runner.input_batch.num_computed_tokens_cpu[index])
            own = Wishes.of(extra) if self._guarded else None
            wishes = own or self._wishes(extra, name, request.num_prompt_tokens)
            spans.append(Span.of(wishes, start, count, read))
            if wishes.logits and read < request.num_prompt_tokens <= read + count:
                self._chosen[index] = str(wishes.capture)
            elif spans[-1].rows:
                self._reads[index] = (wishes, read, read + count)
            start += count
        self._steered.lay_out(spans)
        self._laid_out = True

    def _wishes(self, extra: Mapping[str, Any], name: str, prompt: int) -> Wishes:
        """What a client of a plain server asks for."""
        state, until = 0, None
        if (asked := extra.get(STEERING)) is not None:
            state = 1 + ROOM + list(self._files).index(asked)
            until = prompt if self._files[asked].positions == "prompt" else None
        if not extra.get(CAPTURE):
            return Wishes(state=state, until=until)
        return Wishes(state=state, until=until, capture=name, places=(prompt - 1,))

    def execute_model(self, scheduler_output: Any) -> Any:
        """Runs a step, and looks whether every block was steered in it."""
        self._laid_out = False
        found = super().execute_model(scheduler_output)
        if self._laid_out:
            logits = self.model_runner.execute_model_state.logits
            try:
                self._steered.check(logits)
            except DefenseError as error:
                self._end(error)
            for index, (wishes, read, end) in self._reads.items():
                self._read(index, wishes, read, end)
            if logits is not None:  # of a split model the first worker has them
                for index, name in self._chosen.items():  # one row for each request, as nothing is speculated
                    self._keep(name, logits[index].to("cpu", torch.float32, copy=True))
        return found

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Chooses tokens, unless a block was left out: vLLM may ask for them before it knows of an error."""
        if self._broken is not None:
            raise self._broken
        return super().sample_tokens(*args, **kwargs)

    def _end(self, error: DefenseError) -> None:
        """Ends vLLM: what a step gave that was not steered must not be used.

        Raises:
            DefenseError: In the one process that vLLM asks for the outcome.
        """
        self._broken = error
        self.model_runner.execute_model_state = None
        if self.vllm_config.parallel_config.world_size > 1:  # of another worker vLLM would only log it
            _log.critical("%s", error)
            os._exit(1)
        raise error

    def _read(self, index: int, wishes: Wishes, read: int, end: int) -> None:
        name = str(wishes.capture)
        # Where there was no room, it is never whole, and who fetches it is told that there is nothing.
        if name in self._captured or (found := self._steered.read(index)) is None:
            return
        reading = self._readings.setdefault(name, Reading(wishes))
        reading.add(read, end, *found)
        if (whole := reading.whole) is None:
            return
        del self._readings[name]
        self._keep(name, whole)

    def _keep(self, name: str, found: Tensor) -> None:
        self._captured.setdefault(name, found)
        while len(self._captured) > (_KEPT_FOR_GUARD if self._guarded else _KEPT):
            del self._captured[next(iter(self._captured))]

    def anchorlm_captured(self) -> dict[str, list[list[float]]]:
        """The activations (L, H) at the end of each prompt whose request asked for them; they are given once."""
        found = {name: tensor[:, 0].tolist() for name, tensor in self._captured.items()}
        self._captured.clear()
        return found

    def anchorlm_fetch(self, names: list[str]) -> bytes:
        """What was read for some requests of a guard's own, as safetensors, once: (L, P, H), (L, P, 2 H) or (V,)."""
        there = {name: self._captured.pop(name) for name in names if name in self._captured}
        for name in names:
            self._readings.pop(name, None)
        data: bytes = save(there)
        return data

    def anchorlm_put(self, state: int, data: bytes) -> None:
        """Makes one of the guard's states of the vectors (H,) by block, as safetensors."""
        self._steered.put(state, {int(name): vector for name, vector in load(data).items()})


def _blocks(model: nn.Module, config: VllmConfig) -> nn.ModuleList:
    depth = config.model_config.hf_text_config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            # vLLM also runs blocks of transformers, which have the same names and give another output.
            kinds = {type(one).__name__ if type(one).__module__.startswith("vllm.") else type(one).__module__
                     for one in module}  # fmt: skip
            if strange := sorted(kinds - _SUMMED):
                raise UserError(f"{strange[0]} cannot be read in vLLM yet: load the model with transformers.")
            return module
    raise UserError(f"No list of {depth} blocks was found in the server's model: load the model with transformers.")
