"""What servers answer, in one form. They differ in where log-probabilities stand and in how tokens are named."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

_BY_ID = re.compile(r"token(?:_id)?:(\d+)")
_LONGEST_ID = 18
"""Digits of an id at most."""
_BY_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")
_MOST = 2**31 - 1
"""Of what a server counts. It is believed nothing above."""
_TOLERANCE = 0.02
"""By how much probabilities may sum to more than 1: servers round, and give a token twice that has two names."""


class UnusableError(Exception):
    """An answer that is not as it should be, in a few words."""


@dataclass(frozen=True, slots=True)
class Named:
    """A token as a server names it.

    Attributes:
        logprob: Natural logarithm of its probability.
        id: Its id, where the server tells it.
        piece: Its bytes, where they are known. None for a token that is no text.
        name: As the server spells it.
    """

    logprob: float
    id: int | None
    piece: bytes | None
    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of an answer: the token that was taken, and the likeliest ones there."""

    taken: Named
    top: tuple[Named, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or a part of one that is streamed.

    Attributes:
        text: What was written.
        entries: Its tokens with their log-probabilities. None where they did not come.
        finish: Why it ended, in the server's word. None while it goes on.
        prompt_tokens: As the server counts them. None where it does not.
        completion_tokens: The same of the answer.
        signature: What the server says of itself in every answer.
    """

    text: str
    entries: tuple[Entry, ...] | None
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    signature: tuple[str | None, str | None]


def read_reply(data: Any, *, streamed: bool = False) -> Reply:
    """An answer of either kind of completion, whole or an event of a stream.

    Raises:
        UnusableError: It is something else.
    """
    if not isinstance(data, Mapping):
        raise UnusableError("it is no object")
    if "error" in data:
        error = data["error"]
        told = _text(error.get("message") if isinstance(error, Mapping) else error) or "it does not say which"
        raise UnusableError(f"it is an error: {' '.join(told.split())[:160]}")
    choices = data.get("choices")
    counted = data.get("usage")
    usage: Mapping[str, Any] = counted if isinstance(counted, Mapping) else {}
    signature = (_text(data.get("model")), _text(data.get("system_fingerprint")))
    counts = (count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens")))
    if streamed and choices == []:
        return Reply("", None, None, *counts, signature)
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise UnusableError("it has not just one choice")
    choice = choices[0]
    said = choice.get("delta" if streamed else "message")
    text = said.get("content") if isinstance(said, Mapping) else choice.get("text", "" if streamed else None)
    if text is None and (streamed or isinstance(said, Mapping)):
        text = ""
    if not isinstance(text, str):
        raise UnusableError("it has no text")
    finish = choice.get("finish_reason")
    if finish is not None and not isinstance(finish, str):
        raise UnusableError("its finish_reason is no word")
    if finish is None and not streamed:
        raise UnusableError("it does not say why it ended")
    entries = _with_ids(read_entries(choice.get("logprobs")), choice.get("token_ids"))
    return Reply(text, entries, finish, *counts, signature)


def read_step(data: Any, model: str) -> Reply:
    """One step as SGLang's own interface tells it: with the ids of the likeliest tokens.

    Args:
        data: What it answered.
        model: The model's id there, which it does not say.

    Raises:
        UnusableError: It is something else.
    """
    if not isinstance(data, Mapping) or "error" in data:
        return read_reply(data)
    info, text = data.get("meta_info"), data.get("text")
    if not isinstance(info, Mapping) or not isinstance(text, str):
        raise UnusableError("it is no step")
    rows, end = info.get("output_top_logprobs"), info.get("finish_reason")
    if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], list) or not rows[0]:
        raise UnusableError("it has no log-probabilities")
    top = tuple(map(_by_id, rows[0]))
    counts = (count_of(info.get("prompt_tokens")), count_of(info.get("completion_tokens")))
    finish = _text(end.get("type")) if isinstance(end, Mapping) else None
    return Reply(text, (Entry(top[0], top),), finish, *counts, (model, None))


def read_entries(data: Any) -> tuple[Entry, ...] | None:
    """Log-probabilities in the form of chat completions, or of older text completions.

    Raises:
        UnusableError: They are in no known form, or are no log-probabilities.
    """
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise UnusableError("its log-probabilities are in no known form")
    if isinstance(content := data.get("content"), list):
        return tuple(_entry(one) for one in content)
    tokens, logprobs = data.get("tokens"), data.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        return None
    tops = data.get("top_logprobs")
    tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
    return tuple(
        Entry(_named(token, logprob), tuple(_named(*pair) for pair in _pairs(top)))
        for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
    )


def checked(top: Sequence[Named]) -> None:
    """Whether the likeliest tokens of one step can be parts of a distribution.

    Raises:
        UnusableError: Their probabilities sum to more than 1.
    """
    if not top:
        raise UnusableError("it names no likeliest tokens")
    if sum(math.exp(one.logprob) for one in top) > 1 + _TOLERANCE:
        raise UnusableError("the probabilities that it names sum to more than 1")


def count_of(value: Any) -> int | None:
    """A number of tokens that a server says. None where it says none that can be."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else None


def _pairs(top: Any) -> Iterable[tuple[Any, Any]]:
    if top is None:
        return ()
    if not isinstance(top, Mapping):
        raise UnusableError("its likeliest tokens are in no known form")
    return top.items()


def _with_ids(entries: tuple[Entry, ...] | None, ids: Any) -> tuple[Entry, ...] | None:
    """The ids of the tokens that were taken, where a server tells just as many."""
    if entries is None or not isinstance(ids, list) or len(ids) != len(entries) or not all(map(_is_id, ids)):
        return entries
    return tuple(
        replace(entry, taken=replace(entry.taken, id=index, piece=None))
        for entry, index in zip(entries, ids, strict=True)
    )


def _by_id(data: Any) -> Named:
    if not isinstance(data, list) or len(data) < 2 or not _is_id(data[1]):
        raise UnusableError("a token has no id")
    return Named(min(_logprob(data[0]), 0.0), data[1], None, "")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(data: Any) -> Entry:
    if not isinstance(data, Mapping):
        raise UnusableError("a log-probability is in no known form")
    top = data.get("top_logprobs")
    return Entry(_chat_named(data), tuple(map(_chat_named, top if isinstance(top, list) else ())))


def _chat_named(data: Any) -> Named:
    if not isinstance(data, Mapping) or not isinstance(data.get("token"), str):
        raise UnusableError("a token has no name")
    named = _named(data["token"], data.get("logprob"))
    index, piece = data.get("id"), data.get("bytes")
    known = named.piece if named.id is None else None
    if isinstance(piece, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in piece):
        known = bytes(piece)
    own = index if _is_id(index) else named.id
    return Named(named.logprob, own, known, named.name)


def _named(name: Any, logprob: Any) -> Named:
    if not isinstance(name, str):
        raise UnusableError("a token has no name")
    value = min(_logprob(logprob), 0.0)
    if match := _BY_ID.fullmatch(name):
        if len(match[1]) > _LONGEST_ID:
            raise UnusableError("a token has an id that no token has")
        return Named(value, int(match[1]), None, name)
    if match := _BY_BYTES.fullmatch(name):
        return Named(value, None, bytes.fromhex(match[1].replace("\\x", "")), name)
    # A name with a replacement character hides bytes that no name can show.
    return Named(value, None, None if "\ufffd" in name else name.encode("utf-8", "replace"), name)


def _logprob(value: Any) -> float:
    if value is None:
        return -math.inf
    with suppress(OverflowError):  # an integer may be larger than any float
        if type(value) in (int, float) and float(value) <= _TOLERANCE:  # NaN is not
            return float(value)
    raise UnusableError(f"{value!r:.40} is no log-probability")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
