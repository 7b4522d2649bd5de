from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anchorlm.models._bases import is_shipped, known_as
from anchorlm.models._channel import Channel
from anchorlm.models._ends import TurnEnds
from anchorlm.models._find_calls import ToolTemplate, usable
from anchorlm.models._images import ImageReader
from anchorlm.models._loading import load_model, load_outline, load_processor
from anchorlm.models._marks import Marks
from anchorlm.models._places import Origin, origin
from anchorlm.models._settings import ModelSettings
from anchorlm.models._small import small_weights
from anchorlm.models._template import ChatWriter, chosen_template, encode_text, response_lead
from anchorlm.models._tokenizers import load_tokenizer
from anchorlm.models._tool_turns import no_tools, turn_key
from anchorlm.records import Messages, UserError, uses_tools
from anchorlm.tokens import ByteVocabulary, Grammars

_log = logging.getLogger("anchorlm")

_NONE = object()

_WRITERS = 16
"""Ways to fill in a template that are remembered: clients may bring as many as they like."""

_TAIL = 32
"""Tokens at a prompt's end among which the opening of a thought is looked for."""

_REMEMBERED = 64
"""Conversations whose tokens are kept: a defense asks for them again, for each candidate that it opens."""


@dataclass(frozen=True)
class CausalModel:
    """A checkpoint as AnchorLM sees it: weights, tokenizer, template and the ids that matter.

    Attributes:
        name: What it was loaded from.
        model: The transformers model, in evaluation mode.
        tokenizer: Its fast tokenizer.
        vocabulary: The tokenizer's ids as bytes.
        processor: The transformers processor of a model that reads images; None for text alone.
        origin: The files that it was loaded from; None for a model that came without.
        options: Variables that its chat template always gets, such as `enable_thinking`.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: ByteVocabulary
    processor: Any = None
    origin: Origin | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    _encoded: dict[Any, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _writers: list[ChatWriter] = field(default_factory=list, init=False, repr=False, compare=False)
    _others: dict[str, ChatWriter] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    @classmethod
    def from_pretrained(cls, path: str | Path, **settings: Any) -> Self:
        """Loads a checkpoint from the Hub or a folder; `settings` as in `ModelSettings`.

        Only safetensors are read, and no code of the checkpoint is run unless `trust_remote_code` says so.

        Raises:
            UserError: The path holds no model, the weights are missing, or a setting is unknown.
        """
        return cls.load(ModelSettings.parse({"path": str(path), **settings}, where="a model"))

    @classmethod
    def load(cls, settings: ModelSettings) -> Self:
        """`from_pretrained` for settings that came from a recipe."""
        tokenizer = load_tokenizer(settings)
        processor = load_processor(settings, tokenizer)
        model = cls.wrap(load_model(settings), tokenizer, name=known_as(settings.path), processor=processor)
        return replace(model, origin=origin(settings), options=settings.template)

    @classmethod
    def outline(cls, settings: ModelSettings) -> Self:
        """The checkpoint without its weights: everything about it that can be known before they are read.

        Its parameters are on the meta device; nothing can be run.

        Raises:
            UserError: As `load`, where configuration and tokenizer tell.
        """
        tokenizer = load_tokenizer(settings)
        processor = load_processor(settings, tokenizer)
        model = cls.wrap(load_outline(settings), tokenizer, name=known_as(settings.path), processor=processor)
        return replace(model, origin=origin(settings), options=settings.template)

    @classmethod
    def wrap(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "model", processor: Any = None
    ) -> Self:
        """Takes a model and a tokenizer, and for images a processor, that are loaded already.

        Raises:
            UserError: The tokenizer has more entries than the model has embedding rows.
        """
        tokenizer = chosen_template(tokenizer, name)
        chat = ChatWriter(tokenizer, tokenizer.chat_template)
        # What ends an answer in the template ends it, also where it was added as an ordinary token.
        stops = _declared_stops(model) | set(chat.markers.stops[:1])
        vocabulary = ByteVocabulary.from_tokenizer(tokenizer, stop_ids=stops)
        rows = model.get_output_embeddings().weight.shape[0]
        if vocabulary.size > rows:
            raise UserError(
                f"The tokenizer of {name} has {vocabulary.size} entries but the model only {rows} embedding rows: "
                "load the tokenizer that belongs to it, or call resize_token_embeddings."
            )
        if tokenizer.chat_template is None and not is_shipped(name):
            _log.warning(
                "%s has no chat template: conversations are written as 'User: ... Assistant:'. Give chat_template= "
                "if the model was trained on another form.",
                name,
            )
        wrapped = cls(name, model.eval(), tokenizer, vocabulary, processor)
        wrapped._writers.append(chat)
        return wrapped

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, and so where token ids go."""
        return cast(torch.device, self.model.get_input_embeddings().weight.device)

    @property
    def place(self) -> str:
        """Where it runs and in which number format, in a few words."""
        dtype = small_weights(self.model) or str(self.model.dtype).removeprefix("torch.")
        devices = sorted({str(weight.device) for weight in self.model.parameters()})
        return f"{' and '.join(devices)}, in {dtype}"

    @cached_property
    def rounds(self) -> bool:
        """Whether its numbers are so coarse that another way to the same sum gives visibly other logits."""
        return self.model.get_input_embeddings().weight.dtype != torch.float32 or bool(small_weights(self.model))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn or the text, or begins another turn."""
        return self.vocabulary.stop | set(self._chat.markers.stops)

    @property
    def spelled(self) -> bool:
        """Whether the tokens are known: those of a checkpoint are."""
        return True

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """With which another turn begins, where the template marks turns by text."""
        return tuple(self._chat.markers.stop_texts)

    @cached_property
    def ends(self) -> TurnEnds:
        """Where a response goes on into another turn, if the chat template marks turns by text."""
        return TurnEnds(self.vocabulary, self.stop_texts)

    @cached_property
    def silent_ids(self) -> tuple[int, ...]:
        """Rows of the embeddings that are nothing: beyond the tokenizer, or ids without a text that control nothing."""
        known = self.vocabulary.special | self.stop_ids
        return tuple(
            token for token in range(self.vocab_size) if token not in known and not self.vocabulary.token_bytes(token)
        )

    @cached_property
    def vocab_size(self) -> int:
        """Width V of the logits: the embedding rows, padding included."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def chat_template(self) -> Any:
        """By which conversations are written; None where the checkpoint brings none."""
        return self.tokenizer.chat_template

    @cached_property
    def text_config(self) -> Any:
        """The configuration of the text decoder, also inside a multimodal model."""
        return self.model.config.get_text_config(decoder=True)

    @cached_property
    def context_length(self) -> int:
        """Most positions that the model was built for, prompt and response together."""
        config = self.text_config
        names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
        length = next((int(value) for name in names if (value := getattr(config, name, None))), 2048)
        # These scale positions by the longest row of a batch, so beyond this length a row would depend on others.
        scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        if scaling.get("rope_type") in ("longrope", "dynamic"):
            length = min(length, int(scaling.get("original_max_position_embeddings") or length))
        # GPT-Neo's local layers build their window from the cache's width: within one window they see everything.
        window = getattr(config, "window_size", None)
        return min(length, int(window)) if config.model_type == "gpt_neo" and window else length

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last; a block's output is the residual stream (B, T, H), or a tuple with it.

        Raises:
            UserError: No list of blocks was found.
        """
        depth = self.text_config.num_hidden_layers
        for module in self.model.get_decoder().modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                return module
        raise UserError(
            f"No list of {depth} decoder blocks was found in {self.name}: its activations are out of reach."
        )

    @property
    def _chat(self) -> ChatWriter:
        template = self.tokenizer.chat_template
        if not self._writers or self._writers[-1].template != template or self._writers[-1].options != self.options:
            self._writers.append(ChatWriter(self.tokenizer, template, self.options))
            self._others.clear()
        return self._writers[-1]

    def _writer(self, options: Mapping[str, Any]) -> ChatWriter:
        """The writer of conversations with some variables of its own."""
        own = self._chat
        if all(own.options.get(name, _NONE) == value for name, value in options.items()):
            return own
        key = json.dumps([own.template, dict(options)], sort_keys=True, default=str)
        with self._lock:
            if (found := self._others.get(key)) is None:
                while len(self._others) >= _WRITERS:
                    del self._others[next(iter(self._others))]
                found = self._others[key] = own.like(options)
        return found

    def _clean(self, text: str) -> str:
        image = getattr(self.processor, "image_token", None)
        return self._chat.clean(text, *([image] if image else []))

    @cached_property
    def _images(self) -> ImageReader:
        return ImageReader(self.model, self.processor, self.name)

    @cached_property
    def response_lead(self) -> bytes:
        """The white space with which this model's responses in a conversation open: b" " or b"" as a rule."""
        return response_lead(self.tokenizer, self.vocabulary.decode)

    def channel(self, options: Mapping[str, Any] | None = None) -> Channel | None:
        """Where thoughts stand in what this model writes; None where its chat template knows none.

        Args:
            options: Variables of the template for one request.
        """
        return self._writer(options or {}).channel

    @cached_property
    def tools(self) -> ToolTemplate:
        """What this model's chat template does with tools. A processor, which writes images, knows none."""
        own = self.processor is None or not self.processor.chat_template
        return usable(self._chat.tools, self.marks, self.answer_stops) if own else ToolTemplate()

    @cached_property
    def marks(self) -> Marks:
        """Texts with control tokens in them, as token ids and back."""
        return Marks(self.tokenizer, self.vocabulary)

    @cached_property
    def answer_stops(self) -> frozenset[int]:
        """As `stop_ids`, and the tokens with which another thought begins or ends."""
        channel = self.channel()
        return self.stop_ids | (self.marks.first(*channel.boundaries) if channel else frozenset())

    @cached_property
    def answer_ends(self) -> TurnEnds:
        """As `ends`, and where an answer goes on into another thought."""
        channel = self.channel()
        return TurnEnds(self.vocabulary, [*self._chat.markers.stop_texts, *(channel.boundaries if channel else ())])

    @cached_property
    def grammars(self) -> Grammars:
        """The schemas that its answers can be held to."""
        return Grammars(self.vocabulary, self.vocab_size, self.answer_stops)

    def without_control_tokens(self, text: str) -> str:
        """A text with which no one can write a turn in another's name."""
        return self._clean(text)

    def encode(
        self, messages: Messages | str, options: Mapping[str, Any] | None = None, *, closed: bool = False
    ) -> list[int]:
        """Token ids of a conversation through the chat template, or of a raw prompt as it stands.

        Those of a conversation with images are `PromptIds`, which bring along what the text decoder reads for them.

        Args:
            messages: The conversation, or the prompt.
            options: Variables of the template for this conversation.
            closed: Whether the answer follows at once: a thought that the template opens is ended, and one that the
                model would open is there already, without words. A raw prompt stays as it stands.

        Raises:
            UserError: Nothing to answer, or the conversation does not suit the template or the model.
        """
        if isinstance(messages, str):
            return encode_text(self.tokenizer, messages)
        chat = self._writer(options or {})
        if closed and chat.channel is not None and chat.channel.off is not None:
            chat = self._writer({**(options or {}), **chat.channel.off})
        if self.processor is not None and self.processor.chat_template:
            if uses_tools(messages) or chat.options.get("tools"):
                raise no_tools(self.tools)
            ids = self._images.encode(messages, self._clean)
            return self._shut(ids) if closed else ids
        turns = chat.turns(messages)
        key = (self.tokenizer.chat_template, chat.key, closed, *map(turn_key, turns))
        with self._lock:
            known = self._encoded.get(key)
        if known is None:
            known = chat.encode(turns, closed=closed)
            with self._lock:
                while len(self._encoded) >= _REMEMBERED:
                    del self._encoded[next(iter(self._encoded))]
                self._encoded[key] = known
        return list(known)

    def _shut(self, ids: list[int]) -> list[int]:
        """The ids of a conversation with images, behind which the answer follows at once."""
        channel = self.channel()
        if channel is None:
            return ids
        text = self.marks.text(ids[-_TAIL:])
        ids.extend(self.marks.ids(channel.closed(text)[len(text) :]))
        return ids


def _declared_stops(model: PreTrainedModel) -> set[int]:
    declared = getattr(model.generation_config, "eos_token_id", None)
    return {declared} if isinstance(declared, int) else set(declared or ())
