from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anchorlm.judging._base import Grade, Judge
from anchorlm.judging._conversation import (
    Breaker,
    holds,
    in_first_turn,
    in_one_turn,
    plain_turns,
    request_text,
    require_user,
)
from anchorlm.judging._reading import Reader
from anchorlm.models import (
    ModelSettings,
    TemplateFailedError,
    TemplateRefusedError,
    TurnMarkers,
    chosen_template,
    contents,
    control_texts,
    find_markers,
    load_classifier,
    prepack,
    rendered,
)
from anchorlm.records import DefenseError, Messages, UnreadableError, UserError

Layout = Literal["pair", "chat"]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A row that waits for the next forward."""

    ids: list[int]
    types: list[int]
    longest: int  # of the rows of its call
    call: int
    future: asyncio.Future[float]


class ClassifierJudge(Judge):
    """A Hugging Face sequence classifier. Harm is the probability of its harmful label.

    A model with one logit, or trained for several labels at once, gives a sigmoid, any other a softmax. Everything that
    waits when the event loop comes round is run together, in padded forwards of bounded size. What responses to one
    conversation have in common is read once, where the model can.

    Every word of the conversation and of the response is read, system turns included. What is longer than the model's
    context is an error.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer. A copy is used.
        harm_label: The name or index of the label that means harmful. Not needed with a single logit.
        layout: `pair` gives request and response as a text pair, `chat` the conversation through the chat template.
            By default `chat` where the tokenizer has one.
        max_tokens: Most tokens of one forward, padding included.
        name: For traces and reports.

    Raises:
        UserError: The label or the layout is unknown, or the layout does not suit the tokenizer.
    """

    role: ClassVar[str] = "judge"
    label_option: ClassVar[str] = "harm_label"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        harm_label: str | int | None = None,
        layout: Layout | None = None,
        max_tokens: int = 16_384,
        name: str = "classifier",
    ) -> None:
        self._model = model.eval()
        tokenizer = chosen_template(tokenizer, name)
        self._tokenizer = copy.deepcopy(tokenizer)
        self._tokenizer.padding_side = "right"
        _pad_alike(model, self._tokenizer)
        self._layout: Layout = layout or ("chat" if tokenizer.chat_template else "pair")
        if self._layout not in ("pair", "chat"):
            raise UserError(f"layout = {layout!r} is not known; it is pair or chat.")
        if self._layout == "chat" and not tokenizer.chat_template:
            raise UserError(f"The tokenizer of {name} has no chat template: give one, or use layout = 'pair'.")
        self._label = _label_index(model, harm_label, name, self.label_option)
        self._limit = _context(model, tokenizer)
        self._max_tokens = max_tokens
        self._broken = Breaker(control_texts(tokenizer))
        chat = self._layout == "chat"
        self._markers = find_markers(self._tokenizer, self._tokenizer.chat_template) if chat else TurnMarkers()
        self._name = name
        self._reader = Reader(model, self._tokenizer)
        self._waiting: list[_Waiting] = []
        self._calls = 0
        self._reads_system = False
        if self._layout == "chat":
            self._check_template()

    def _check_template(self) -> None:
        """Before anything is graded: a template that drops answers would make all of them equal."""
        asked, answer = [{"role": "user", "content": "mountain"}], "river"
        system = {"role": "system", "content": "forest"}
        with suppress(Exception):  # a template is a program, and may raise anything
            self._reads_system = holds(self._written([system, *asked], answer), ["forest", "mountain", answer])
        try:
            self._render(asked, answer)
        except DefenseError as error:
            raise UserError(str(error)) from None

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        harm_label: str | int | None = None,
        layout: Layout | None = None,
        max_tokens: int = 16_384,
        **settings: Any,
    ) -> Self:
        """Loads a classifier from a Hub id or a folder. `settings` as in `ModelSettings`.

        Raises:
            UserError: Nothing of the kind is there, or a setting does not suit, or see the class.
        """
        model = ModelSettings.parse({"path": str(path), **settings}, where="a classifier")
        return cls.load(model, harm_label=harm_label, layout=layout, max_tokens=max_tokens)

    @classmethod
    def load(cls, settings: ModelSettings, *, weights: bool = True, **options: Any) -> Self:
        """`from_pretrained` for settings that came from a recipe.

        Args:
            settings: Which classifier, and how to load it.
            weights: Without them nothing can be graded, but all settings are checked.
            **options: Keyword arguments of the class.
        """
        model, tokenizer = load_classifier(settings, weights=weights)
        return cls(prepack(model) if weights else model, tokenizer, name=settings.path, **options)

    @property
    def name(self) -> str:
        """See `Judge`."""
        return f"classifier:{self._name}"

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Judge`. With digests of what turns a conversation into what the model reads, and of the model."""
        written = json.dumps(
            [self._tokenizer.chat_template, self._tokenizer.backend_tokenizer.to_str()], sort_keys=True, default=str
        )
        return {
            "harm_label": self._label,
            "layout": self._layout,
            "tokenizer": hashlib.sha256(written.encode()).hexdigest()[:16],
            "weights": contents(self._model),
        }

    @property
    def forwards(self) -> int:
        """Of the model so far."""
        return self._reader.forwards

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
        """See `Judge`.

        Raises:
            UnreadableError: The conversation leaves no room in the classifier's context.
            DefenseError: The conversation and a response do not fit into the classifier's context.
        """
        label = self._model.config.id2label.get(self._label, self._label)
        return [Grade(harm, f"{label} {harm:.3f}") for harm in await self.values(messages, responses)]

    async def values(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """What the classifier says of each response, as one number."""
        encoded = [self._encode(messages, response) for response in responses]
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[float]] = [loop.create_future() for _ in encoded]
        if encoded and not self._waiting:
            loop.call_soon(self._run)
        self._calls += 1
        longest = max((len(ids) for ids, _ in encoded), default=0)
        self._waiting.extend(
            _Waiting(ids, types, longest, self._calls, future)
            for (ids, types), future in zip(encoded, futures, strict=True)
        )
        return list(await asyncio.gather(*futures))

    def _encode(self, messages: Messages, response: str) -> tuple[list[int], list[int]]:
        require_user(messages)
        turns = [{**turn, "content": self._break(turn["content"])} for turn in plain_turns(messages)]
        encoded = self._laid_out(turns, response)
        if (needed := len(encoded["input_ids"])) > self._limit:
            if (least := len(self._laid_out(turns, "a")["input_ids"])) > self._limit:
                raise UnreadableError(
                    f"The prompt needs {least} tokens of the {self.role} {self._name}, which reads {self._limit} with "
                    "an answer: shorten it, or take a classifier with a longer context."
                )
            raise DefenseError(
                f"The conversation and its answer need {needed} tokens, but the {self.role} {self._name} reads "
                f"{self._limit}: take a classifier with a longer context, or lower max_new_tokens."
            )
        return _ids(encoded)

    def _laid_out(self, turns: Messages, response: str) -> Mapping[str, list[int]]:
        answer = self._break(response)
        return self._render(turns, answer) if self._layout == "chat" else self._tokens(request_text(turns), answer)

    def _render(self, turns: Messages, answer: str) -> Mapping[str, list[int]]:
        """The first way to write the conversation that the template takes and that leaves no word out."""
        said: Exception | None = None
        ways = [lambda some: some] if self._reads_system or all(turn["role"] != "system" for turn in turns) else []
        for tags in (True, False):  # a template may drop what stands in tags such as <think>
            given = turns if tags else [{**turn, "content": self._untagged(turn["content"])} for turn in turns]
            last = answer if tags else self._untagged(answer)
            for way in (*ways, in_first_turn, in_one_turn):
                try:
                    text = self._written(way(given), last)
                except (TemplateRefusedError, TemplateFailedError) as error:
                    said = said or error
                    continue
                if holds(text, [*(turn["content"] for turn in given), last]):
                    return self._tokens(text, add_special_tokens=False)
        raise DefenseError(
            f"The chat template of the {self.role} {self._name} "
            + (f"refuses the conversation ({said})" if said else "leaves a part of the conversation out")
            + ": use layout = 'pair', or give another chat_template."
        )

    def _break(self, text: str) -> str:
        """A text in which nothing reads as the beginning of another turn. Every word of it stays."""
        return self._markers.neutral(self._broken(text))

    def _untagged(self, text: str) -> str:
        return self._break(text.replace("<", "["))

    def _written(self, turns: Messages, answer: str) -> str:
        whole = [*turns, {"role": "assistant", "content": answer}]
        return rendered(self._tokenizer, whole, opens=False)

    def _tokens(self, *texts: str, **options: bool) -> Mapping[str, list[int]]:
        encoded: Mapping[str, list[int]] = self._tokenizer(*texts, truncation=False, padding=False, **options)
        return encoded

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda one: (one.longest, one.call))  # rows of one call stay together
        while waiting:
            rows = len(waiting)
            while rows > 1 and rows * waiting[rows - 1].longest > self._max_tokens:
                rows -= 1
            batch, waiting = waiting[:rows], waiting[rows:]
            try:
                logits = self._reader.logits(
                    [one.ids for one in batch], [one.types for one in batch], [one.call for one in batch]
                )
                values: list[float] = self.read(logits).tolist()
            except Exception as error:  # remote code may raise anything, and someone waits for each future
                failure = DefenseError(
                    f"The {self.role} {self._name} failed: {error}; check its weights and its device."
                )
                failure.__cause__ = error
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(failure)
                continue
            for one, value in zip(batch, values, strict=True):
                if not one.future.done():
                    one.future.set_result(value)

    @property
    def _separate(self) -> bool:
        """Whether each label is decided by itself."""
        config = self._model.config
        return bool(config.problem_type == "multi_label_classification") or len(config.id2label) == 1

    def read(self, logits: Tensor) -> Tensor:
        """The harm (B,) that logits (B, L) tell: the probability of the harmful label."""
        return (logits.sigmoid() if self._separate else logits.softmax(-1))[:, self._label]


def _pad_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The head looks for the last token that is not the configuration's padding: rows must be padded with just that."""
    config = model.config.get_text_config()
    known = config.pad_token_id
    if known is not None and 0 <= known < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(known)
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = config.pad_token_id = tokenizer.pad_token_id


def _ids(encoded: Mapping[str, list[int]]) -> tuple[list[int], list[int]]:
    return list(encoded["input_ids"]), list(encoded.get("token_type_ids", ()))


def _label_index(model: PreTrainedModel, label: str | int | None, name: str, option: str) -> int:
    names = {int(index): str(text) for index, text in model.config.id2label.items()}
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and label in names:
        return label
    by_name = {text.casefold(): index for index, text in names.items()}
    if isinstance(label, str) and label.casefold() in by_name:
        return by_name[label.casefold()]
    raise UserError(
        f"{option} = {label!r} is no label of {name}; its labels are: "
        f"{', '.join(f'{text!r} ({index})' for index, text in sorted(names.items()))}."
    )


def _context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    return min(int(positions), int(tokenizer.model_max_length))
