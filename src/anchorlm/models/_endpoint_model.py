from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from anchorlm.models._channel import Channel
from anchorlm.models._endpoint_settings import EndpointSettings
from anchorlm.models._ends import TurnEnds
from anchorlm.models._find_calls import ToolTemplate, usable
from anchorlm.models._marks import Marks
from anchorlm.models._specials import without_specials
from anchorlm.models._template import ChatWriter, chosen_template, encode_text, message_parts, response_lead
from anchorlm.models._tokenizers import load_tokenizer
from anchorlm.models._tool_turns import no_tools, turn_key
from anchorlm.records import Messages, UserError, turn_text, uses_tools
from anchorlm.tokens import ByteVocabulary, PieceVocabulary, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED = 64
_WRITERS = 16
"""Ways to fill in a template that are remembered: clients may bring as many as they like."""
_UNKNOWN_CONTEXT = 1 << 20
"""Where neither the server nor the settings say how much a model reads: the server will say when it is too much."""
_CONTROLS = (
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|turn|>",
    "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "<<SYS>>", "<</SYS>>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
)  # fmt: skip
"""Control tokens of well-known chat formats. Where no tokenizer is given, these are kept out of turns."""


@dataclass(eq=False)
class EndpointModel:
    """A model behind an endpoint as defenses see it: how it writes conversations, and its tokens as bytes.

    Attributes:
        settings: Which.
        tokenizer: The model's own, or what stands for one that was not given.
        vocabulary: Its ids as bytes, or `PieceVocabulary`.
        id: The model's id on its server.
        context_length: Tokens that it reads, prompt and response together.
        templated: Whether the server writes conversations.
        known: What the server tells of the model, as plain JSON data.
    """

    settings: EndpointSettings
    tokenizer: Any
    vocabulary: Any
    id: str = ""
    context_length: int = _UNKNOWN_CONTEXT
    templated: bool = True
    known: dict[str, Any] = field(default_factory=dict)
    processor: None = None
    origin: None = None
    _encoded: OrderedDict[Any, list[int]] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    @classmethod
    def load(cls, settings: EndpointSettings) -> EndpointModel:
        """The tokenizer, where one is given. The server is not asked.

        Raises:
            UserError: It cannot be loaded.
        """
        source = settings.tokenizer_settings
        if source is None:
            stand_in = SimpleNamespace(added_tokens_decoder={}, all_special_tokens=list(_CONTROLS), chat_template=None)
            return cls(settings, stand_in, PieceVocabulary(), id=settings.model or "")
        return cls.wrap(settings, load_tokenizer(source))

    @classmethod
    def wrap(cls, settings: EndpointSettings, tokenizer: PreTrainedTokenizerBase) -> EndpointModel:
        """Takes a tokenizer that is loaded already."""
        tokenizer = chosen_template(tokenizer, str(settings.tokenizer))
        stops = set(ChatWriter(tokenizer, tokenizer.chat_template).markers.stops[:1])
        vocabulary = ByteVocabulary.from_tokenizer(tokenizer, stop_ids=stops)
        return cls(settings, tokenizer, vocabulary, id=settings.model or "")

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.id or 'the model'} at {self.settings.endpoint}"

    @property
    def spelled(self) -> bool:
        """Whether the tokens are known."""
        return isinstance(self.vocabulary, ByteVocabulary)

    @cached_property
    def _chat(self) -> ChatWriter:
        return ChatWriter(self.tokenizer, self.tokenizer.chat_template, self.options)

    @cached_property
    def _others(self) -> Callable[[str], ChatWriter]:
        return lru_cache(maxsize=_WRITERS)(lambda options: self._chat.like(json.loads(options)))

    def _writer(self, options: Mapping[str, Any] | None) -> ChatWriter:
        """The writer of conversations with some variables of its own."""
        return self._others(json.dumps(dict(options), sort_keys=True)) if options else self._chat

    @property
    def options(self) -> Mapping[str, Any]:
        """Variables that the chat template always gets, wherever conversations are written."""
        return self.settings.template

    @property
    def chat_template(self) -> Any:
        """By which conversations are written here. None where the server does it."""
        return self.tokenizer.chat_template

    @property
    def vocab_size(self) -> int:
        """Width of the distributions that are read from the server."""
        return int(self.vocabulary.size)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn or the text, or begins another turn."""
        if not self.spelled:
            return frozenset()
        return frozenset(self.vocabulary.stop | set(self._chat.markers.stops))

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """With which another turn begins, where the template marks turns by text."""
        return tuple(self._chat.markers.stop_texts) if self.spelled else ()

    @cached_property
    def ends(self) -> TurnEnds:
        """Where a response goes on into another turn."""
        return TurnEnds(self.vocabulary, self.stop_texts)

    def channel(self, options: Mapping[str, Any] | None = None) -> Channel | None:
        """See `CausalModel.channel`. None where the server writes conversations, thoughts and all."""
        return None if self.templated else self._writer(options).channel

    @cached_property
    def tools(self) -> ToolTemplate:
        """See `CausalModel.tools`. None where the server writes conversations, for it would part the calls itself."""
        if self.templated or not self.spelled:
            return ToolTemplate()
        return usable(self._chat.tools, self.marks, self.answer_stops)

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
        return TurnEnds(self.vocabulary, [*self.stop_texts, *(channel.boundaries if channel else ())])

    @cached_property
    def response_lead(self) -> bytes:
        """The white space with which this model's responses open."""
        return response_lead(self.tokenizer, self.vocabulary.decode) if self.spelled else b""

    @cached_property
    def pieces(self) -> dict[bytes, int]:
        """The ids by their bytes. Of several the first."""
        return {data: index for index, data in reversed(list(enumerate(self.vocabulary.bytes))) if data}

    @cached_property
    def alone(self) -> dict[str, int | None]:
        """The ids by the texts that they are decoded to one by one, as servers name them. None: several share it.

        SentencePiece leaves out the space in front of the first word, so "▁the" and "the" share theirs.
        """
        if not self.spelled:
            return {}
        ids = sorted(self.vocabulary.strings.values())
        found: dict[str, int | None] = {}
        for index, text in zip(ids, self.tokenizer.batch_decode([[index] for index in ids]), strict=True):
            found[text] = None if text in found else index
        return found

    @cached_property
    def names(self) -> dict[str, int]:
        """The special ids by their names."""
        return {name: index for name, index in self.vocabulary.strings.items() if index in self.vocabulary.special}

    def without_control_tokens(self, text: str) -> str:
        """A text that cannot write a turn in another's name."""
        if self.spelled:
            return self._chat.clean(text)
        return without_specials(text, _CONTROLS)

    def encode(
        self, messages: Messages | str, options: Mapping[str, Any] | None = None, *, closed: bool = False
    ) -> list[int]:
        """Token ids of a conversation or of a raw prompt.

        Where the server writes conversations they stand for the turns themselves, and their number is an estimate.

        Args:
            messages: The conversation, or the prompt.
            options: Variables of the template for this conversation.
            closed: Whether the answer follows at once, without a thought. What a server does with thoughts is its own.

        Raises:
            UserError: Nothing to answer, or the conversation does not suit the template.
        """
        if isinstance(messages, str):
            if not messages.strip():
                raise UserError("The prompt is empty: give some text.")
            return prompt_ids(messages) if self.templated else encode_text(self.tokenizer, messages)
        if not self.templated:
            chat = self._writer(options)
            if closed and chat.channel is not None and chat.channel.off is not None:
                chat = self._writer({**(options or {}), **chat.channel.off})
            turns = chat.turns(messages)
            return self._remembered((chat.key, closed), turns, lambda: chat.encode(turns, closed=closed))
        variables = {**self.options, **(options or {})}
        if variables.pop("tools", None) or uses_tools(messages):
            raise no_tools(self.tools)
        body: dict[str, Any] = {"messages": self._turns(messages)}
        return prompt_ids(body | ({"chat_template_kwargs": variables} if variables else {}))

    def _turns(self, messages: Messages) -> list[dict[str, str]]:
        turns = [
            {"role": turn["role"], "content": self.without_control_tokens(turn_text({"content": parts}))}
            for turn in messages
            for parts in [message_parts(turn, images=False)]
        ]
        if not turns or not turns[-1]["content"].strip():
            raise UserError("The prompt is empty: give at least one message with some text.")
        return turns

    def _remembered(self, way: Any, turns: list[dict[str, Any]], write: Callable[[], list[int]]) -> list[int]:
        key = (way, *map(turn_key, turns))
        with self._lock:
            ids = self._encoded.get(key)
        if ids is None:
            ids = write()
            with self._lock:
                self._encoded[key] = ids
                while len(self._encoded) > _REMEMBERED:
                    self._encoded.popitem(last=False)
        return list(ids)

    @property
    def identity(self) -> dict[str, Any]:
        """What its outputs depend on, as far as it can be known here."""
        written = [self.chat_template, dict(self.options)] if self.options else self.chat_template
        template = hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]
        return {
            "endpoint": self.settings.endpoint,
            "model": self.id,
            "told": self.known,
            "tokenizer": self.vocabulary.digest,
            "template": template,
            "top_logprobs": self.settings.top_logprobs,
        }
