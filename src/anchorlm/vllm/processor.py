"""The classes that vLLM loads. This file imports vLLM; the others of the package do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as OlderProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from anchorlm.models import ModelSettings
from anchorlm.records import UserError
from anchorlm.vllm._settings import KEY, Asked, PluginSettings
from anchorlm.vllm._slots import Held, Slots
from anchorlm.vllm._start import WORKER, check_server, is_named, took_part

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as NewerProcessor
except ImportError:  # a vLLM that has the older runner only
    NewerProcessor = object

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams
    from vllm.config import VllmConfig

    from anchorlm.vllm._mixer import Guided, Mixer


_NO_PART = "AnchorLM had no part in this server's start, so it cannot guide or steer: name anchorlm in VLLM_PLUGINS."
"""A server may then speculate, search with beams, or steer without a worker of ours, and nobody would say so."""


class AnchorProcessor(OlderProcessor, NewerProcessor):  # type: ignore[misc]  # vLLM is not there where types are checked
    """AlignBeam's mixing for a vLLM server, under the older model runner and the newer one.

    The two share an entry-point group, and each refuses a class that is made for the other alone. The older one calls
    `update_state(update)` and `apply(logits)`, the newer one `add_request(slot, params)` and `apply(logits, context)`.
    It does nothing before a request asks, or the operator sets a floor.
    """

    def __init__(self, vllm_config: VllmConfig, *of_runner: Any) -> None:
        """Loads the anchor, if the operator has named one.

        Args:
            vllm_config: The server's.
            *of_runner: Of the older runner its device and whether it pins memory, of the newer one its requests.

        Raises:
            UserError: The server speculates, or a setting or a model does not fit.
        """
        self._requests: Any = of_runner[0] if len(of_runner) == 1 else None
        self._mixer = self._load(vllm_config)
        self._slots = Slots(self._close)

    def _load(self, config: VllmConfig) -> Mixer | None:
        settings = PluginSettings.from_environment() if self._serves(config) else None
        if settings is not None and settings.steering and config.parallel_config.worker_cls != WORKER:
            raise UserError(_NO_PART)
        if settings is None or settings.anchor is None:
            return None
        from anchorlm.vllm._mixer import Mixer

        check_server(config, settings)
        model = config.model_config
        target = ModelSettings(
            path=model.model,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            chat_template=settings.chat_template,
        )
        return Mixer.load(settings, target, rows=int(config.scheduler_config.max_num_seqs))

    def _serves(self, config: VllmConfig) -> bool:
        """Whether it is this one that does the work: a server that was told a name loads both."""
        return not is_named(config)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Whether a request asks for what can be had. vLLM gives the error to the client, with status 400.

        Raises:
            ValueError: It cannot.
        """
        try:
            settings = PluginSettings.current()
            if settings.anchor is not None and not took_part():
                raise UserError(_NO_PART)
            if any(str(name).startswith(KEY) for name in sampling_params.extra_args or {}):
                settings.check(sampling_params.extra_args)
            if settings.floor.alpha > 0:
                settings.check_choice(sampling_params)
        except UserError as error:
            raise ValueError(str(error)) from None

    def is_argmax_invariant(self) -> bool:
        """Whether greedy decoding needs none of it: it does."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """The older runner: requests come, go, and move between rows."""
        if batch_update is None or self._mixer is None:
            return
        for slot in batch_update.removed:
            self._slots.remove(slot)
        for slot, params, prompt, output in batch_update.added:
            if (guided := self._guided(params)) is not None:
                guided.prompt = list(prompt or ())
            self._slots.put(slot, None if guided is None else Held(guided, output))
        for source, target, way in batch_update.moved:
            self._slots.move(source, target, swap=way == MoveDirectionality.SWAP)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """The newer runner: a request comes into a slot, and whatever was there is gone."""
        guided = self._guided(sampling_params)
        self._slots.put(req_idx, None if guided is None else Held(guided))
        return guided is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Mixes the rows whose requests are guided; the others stay as they are."""
        if self._mixer is None or not self._slots:
            return logits
        rows = self._older_rows(len(logits)) if ctx is None else self._newer_rows(ctx)
        self._mixer.mix(logits, rows)
        return logits

    def _older_rows(self, count: int) -> list[tuple[int, Guided, Sequence[int]]]:
        return [(row, held.guided, held.output or ()) for row, held in self._slots.rows() if row < count]

    def _newer_rows(self, ctx: Any) -> list[tuple[int, Guided, Sequence[int]]]:
        """The newer runner's rows that may be mixed, each with what its request has written."""
        slots = ctx.idx_mapping_np.tolist()
        ends = (ctx.pos + 1).tolist() if self._slots.rows(slots) else []  # tokens that the row has read
        rows = []
        for row, held in self._slots.rows(slots):
            guided, slot = held.guided, slots[row]
            start = int(self._requests.prompt_len.np[slot])
            guided.prompt = guided.prompt or self._tokens(slot, 0, start)
            if guided.wants(ends[row] - start):
                rows.append((row, guided, slot, start, ends[row]))
        if not rows:
            return []
        ids = self._requests.all_token_ids.gpu
        _, _, there, _, read = zip(*rows, strict=True)
        last = ids[torch.tensor(there), torch.tensor(read) - 1].tolist()  # of all rows at once: mostly one is new
        for (_, guided, slot, start, end), token in zip(rows, last, strict=True):
            known = start + len(guided.written)
            guided.written += [token] if end == known + 1 else self._tokens(slot, known, end)
        return [(row, guided, guided.written) for row, guided, *_ in rows]

    def _tokens(self, slot: int, start: int, end: int) -> list[int]:
        return cast("list[int]", self._requests.all_token_ids.gpu[slot, start : max(start, end)].tolist())

    def _guided(self, params: SamplingParams) -> Guided | None:
        return None if self._mixer is None else self._mixer.state(Asked.read(params.extra_args))

    def _close(self, guided: Guided) -> None:
        if self._mixer is not None:
            self._mixer.close(guided)


class NamedProcessor(AnchorProcessor):
    """The same, for a server that is told its name. The one that comes by the entry point then does nothing."""

    def _serves(self, config: VllmConfig) -> bool:
        return True
