"""The worker that vLLM starts where activations are read or steered. This file imports vLLM."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from vllm.platforms import current_platform

from anchorlm.engine import GUARD, ROOM, Wishes
from anchorlm.records import DefenseError, UserError
from anchorlm.vllm._blocks import Span, SteeredBlocks
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


@dataclass(slots=True)
class _Read:
    """What is read of a request in one step.

    Attributes:
        name: Under which it is kept.
        begin: From which of its tokens on their mean is wanted, too; None: it is not.
        read: How many of its tokens were read before.
        end: How many are read when the step has ended.
        last: Whether its prompt ends in this step.
    """

    name: str
    begin: int | None
    read: int
    end: int
    last: bool


class SteeredWorker(Worker):  # type: ignore[misc]  # vLLM is not there where types are checked
    """vLLM's own worker, whose model is read and steered request by request."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        check_steered(vllm_config)
        settings = PluginSettings.from_environment()
        self._files = {} if settings is None else settings.loaded
        # A model that was compiled for a server without our hooks would be taken from vLLM's cache.
        states = len(self._files) + ROOM
        self._guarded = bool(vllm_config.additional_config.get(GUARD))
        vllm_config.additional_config = {**vllm_config.additional_config, "anchorlm_states": states}
        self._broken: DefenseError | None = None
        self._captured: dict[str, Tensor] = {}
        self._sums: dict[str, tuple[Tensor, int]] = {}  # and how many tokens they are of
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
            requests=runner.max_num_reqs,
            states=len(self._files) + ROOM,
        )
        for state, file in enumerate(self._files.values(), 1 + ROOM):
            self._steered.put(state, file.shifts)
        self._reads: dict[int, _Read] = {}
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
        self._reads = {}
        for index, (name, count) in enumerate(zip(runner.input_batch.req_ids, counts, strict=False)):
            request = runner.requests[name]
            extra = (request.sampling_params.extra_args or {}) if request.sampling_params is not None else {}
            read = int(runner.input_batch.num_computed_tokens_cpu[index])
            own = Wishes.of(extra) if self._guarded else None
            wishes = own or self._wishes(extra, name, request.num_prompt_tokens)
            spans.append(Span.of(wishes, start, count, read))
            if wishes.capture is not None and read < request.num_prompt_tokens:
                last = request.num_prompt_tokens <= read + count
                self._reads[index] = _Read(wishes.capture, wishes.mean_from, read, read + count, last)
            start += count
        self._steered.lay_out(spans)
        self._laid_out = True

    def _wishes(self, extra: Mapping[str, Any], name: str, prompt: int) -> Wishes:
        """What a client of a plain server asks for."""
        state, until = 0, None
        if (asked := extra.get(STEERING)) is not None:
            state = 1 + ROOM + list(self._files).index(asked)
            until = prompt if self._files[asked].positions == "prompt" else None
        return Wishes(state=state, until=until, capture=name if extra.get(CAPTURE) else None)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Runs a step, and looks whether every block was steered in it."""
        self._laid_out = False
        found = super().execute_model(scheduler_output)
        if self._laid_out:
            try:
                self._steered.check()
            except DefenseError as error:
                self._end(error)
            for index, one in self._reads.items():
                self._read(index, one)
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

    def _read(self, index: int, one: _Read) -> None:
        begin = one.begin
        if begin is not None and one.end > begin:
            total, count = self._steered.sums(index), one.end - max(one.read, begin)
            if one.read > begin and one.name in self._sums:  # else it is read from the beginning, perhaps once more
                before, more = self._sums[one.name]
                total, count = before + total, more + count
            self._sums[one.name] = (total, count)
        if not one.last:
            return
        found = self._steered.activations(index)
        if begin is not None:
            total, count = self._sums.pop(one.name, (found, 0))
            if not count or count != one.end - begin:
                return  # a part was taken from the cache, and who fetches it is told that there is nothing
            found = torch.cat([found, total / count], dim=-1)
        self._captured.setdefault(one.name, found)
        while len(self._captured) > (_KEPT_FOR_GUARD if self._guarded else _KEPT):
            del self._captured[next(iter(self._captured))]

    def anchorlm_captured(self) -> dict[str, list[list[float]]]:
        """The activations (L, H) at the end of each prompt whose request asked for them; they are given once."""
        found = {name: tensor.tolist() for name, tensor in self._captured.items()}
        self._captured.clear()
        return found

    def anchorlm_fetch(self, names: list[str]) -> bytes:
        """Those of some requests of a guard's own, as safetensors: (L, H), or (L, 2 H) with the mean. Given once."""
        there = {name: self._captured.pop(name) for name in names if name in self._captured}
        for name in names:
            self._sums.pop(name, None)
        data: bytes = save(there)
        return data

    def anchorlm_put(self, state: int, data: bytes) -> None:
        """Makes one of the guard's states of the vectors (H,) by block, as safetensors."""
        self._steered.put(state, {int(name): vector for name, vector in load(data).items()})


def _blocks(model: nn.Module, config: VllmConfig) -> nn.ModuleList:
    depth = config.model_config.hf_text_config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            kinds = {type(block).__name__ for block in module}
            if strange := sorted(kinds - _SUMMED):
                raise UserError(f"{strange[0]} cannot be read in vLLM yet: load the model with transformers.")
            return module
    raise UserError(f"No list of {depth} blocks was found in the server's model: load the model with transformers.")
