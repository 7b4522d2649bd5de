from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchorlm.files._hub import fetched
from anchorlm.files._layouts import MMLU, is_mmlu, keyed, phrases
from anchorlm.records import Messages, UserError

COLUMNS = (
    "messages",
    "prompt",
    "goal",
    "behavior",
    "instruction",
    "question",
    "forbidden_prompt",
    "query",
    "input",
    "text",
    "prompts_final",
    "harmful_medical_request",
    "sentence",
    "context",
)
"""Names under which published files keep what is asked, whatever their case. The first that a row has is taken."""

IDS = ("id", "behaviorid")
"""Names under which published files keep a row's own id."""

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One thing to answer.

    Attributes:
        index: Its place among the rows of the input, bad ones included, from 0.
        line: The line of the file on which it starts, from 1. In a JSON list, its place from 1.
        prompt: A text, which is one turn of the user, or a conversation.
        id: What the file calls it, if anything.
        fields: Everything that the file says about it, by name. Nothing for a line of text.
    """

    index: int
    line: int
    prompt: Messages | str
    id: str | int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be answered, and why not."""

    index: int
    line: int
    why: str


class _MalformedError(Exception):
    """What is wrong with a row."""


def read_rows(source: str, column: str | None = None) -> list[PromptRow | BadRow]:
    """The rows of a file, of stdin (`-`), or of a file on the Hub (`hf://datasets/ORG/NAME/FILE`).

    The format follows from the name (.jsonl, .ndjson, .csv, .tsv, .json, .txt) or else from the first character: `[` a
    JSON list, `{` JSONL, anything else lines of text. Compression is seen from the bytes. Blank lines are no rows.
    MMLU's CSV without a header, the Financial PhraseBank's lines `sentence@label` (in Latin-1, as published, too) and
    PubMedQA's object of objects are known by their layout.

    Raises:
        UserError: The file cannot be read, is not UTF-8 text, holds no row, or has no column that may hold the prompt.
    """
    name = "stdin" if source == "-" else source
    text = _text(_bytes(fetched(source)), name)
    pieces = _pieces(text, _format(source, text), name, column)
    rows = [_row(index, line, piece, column) for index, (line, piece) in enumerate(pieces)]
    if not rows:
        raise UserError(f"{name} holds no rows: give at least one prompt.")
    return rows


def _bytes(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{source!r} cannot be read ({why}): give a file of prompts, or - for stdin.") from None


def _text(data: bytes, name: str) -> str:
    try:
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        latin = error.object.decode("latin-1")  # as the Financial PhraseBank, and it alone, is published
        if phrases(_lines(latin)):
            return latin
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{name} is not UTF-8 text (line {line}): give JSONL, CSV, JSON or text lines.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name} is not a whole gzip file ({error}): make it again.") from None


def _format(source: str, text: str) -> str:
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    first = text.lstrip()[:1]
    if suffix in (".csv", ".tsv", ".txt"):
        return suffix[1:]
    if suffix in (".jsonl", ".ndjson") or (first == "{" and suffix != ".json"):
        return "jsonl"
    return "json" if suffix == ".json" or first == "[" else "txt"


def _pieces(text: str, kind: str, name: str, column: str | None) -> Iterable[tuple[int, object]]:
    """What stands for each row, with its line: a text, an object, or what is wrong with it."""
    if kind in ("csv", "tsv"):
        return _csv(text, name, "," if kind == "csv" else "\t", column)
    if kind == "json":
        return _json(text, name)
    if kind == "jsonl":
        return ((number, _parsed(line)) for number, line in _lines(text))
    return phrases(_lines(text)) or _lines(text)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return _MalformedError(f"it is not valid JSON ({getattr(error, 'msg', error)})")


def _json(text: str, name: str) -> Iterable[tuple[int, object]]:
    """A list. An object with one list of objects in it, or only of objects. Or, under a wrong name, JSON lines."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and isinstance(_parsed(text.lstrip().partition("\n")[0]), dict):
            return _pieces(text, "jsonl", name, None)
        raise UserError(f"{name} is not valid JSON ({error}): fix it, or give a JSON object on each line.") from None
    if isinstance(data, dict) and (rows := keyed(data)):
        return enumerate(rows, start=1)
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(f"{name} is a JSON object without exactly one list in it: give a list of rows, or JSONL.")
        data = lists[0]
    if not isinstance(data, list):
        raise UserError(f"{name} holds no list of rows: give a JSON list, or JSONL.")
    return enumerate(data, start=1)


def _csv(text: str, name: str, delimiter: str, column: str | None) -> Iterator[tuple[int, object]]:
    csv.field_size_limit(sys.maxsize)
    reader, ahead = (csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) for _ in range(2))
    try:
        header = list(MMLU) if is_mmlu(ahead, (*IDS, *COLUMNS)) else next(reader, [])
    except csv.Error as error:
        raise UserError(f"The header of {name} is not valid CSV ({error}): fix it, or give JSONL.") from None
    if not header:
        return
    if _column(header, column) is None:
        wanted = f"no column {column!r}" if column else "no column that is known to hold prompts"
        raise UserError(f"{name} has {wanted}, only {', '.join(map(repr, header))}: name one of these with --column.")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _MalformedError(f"it is not valid CSV ({error})")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            yield line, _MalformedError(f"it has {len(cells)} cells under {len(header)} columns")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _row(index: int, line: int, piece: object, column: str | None) -> PromptRow | BadRow:
    try:
        if isinstance(piece, _MalformedError):
            raise piece
        if isinstance(piece, str):
            return PromptRow(index, line, _checked(piece))
        if not isinstance(piece, Mapping):
            raise _MalformedError(f"it is neither an object nor a text, but {json.dumps(piece)[:40]}")
        names = {str(name).strip().lower(): name for name in reversed(list(piece))}
        key = _column(list(piece), column)
        if key is None:
            wanted = f"no field {column!r}" if column else "no field that is known to hold a prompt"
            raise _MalformedError(f"it has {wanted}, only {', '.join(map(repr, piece))}")
        own = next((piece[names[name]] for name in IDS if name in names), None)
        return PromptRow(
            index,
            line,
            _with_context(_checked(piece[key]), key, piece, names),
            own if isinstance(own, str | int) else None,
            {str(name): value for name, value in piece.items()},
        )
    except _MalformedError as error:
        return BadRow(index, line, str(error))


def _column(header: list[str], column: str | None) -> str | None:
    if column is not None:
        return column if column in header else None
    names = {str(name).strip().lower(): name for name in reversed(header)}
    return next((names[name] for name in COLUMNS if name in names), None)


def _with_context(
    prompt: Messages | str, key: str, piece: Mapping[str, Any], names: Mapping[str, str]
) -> Messages | str:
    """HarmBench keeps a behavior's context, and Alpaca an instruction's input, in a second column."""
    if isinstance(prompt, str):
        for first, second, pattern in (
            ("behavior", "contextstring", "{more}\n\n---\n\n{prompt}"),
            ("instruction", "input", "{prompt}\n\n{more}"),
        ):
            more = piece.get(names.get(second, ""))
            if key.strip().lower() == first and isinstance(more, str) and more.strip():
                return pattern.format(prompt=prompt, more=more)
    return prompt


def _checked(prompt: object) -> Messages | str:
    try:
        json.dumps(prompt, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _MalformedError("its prompt holds half of a character (a lone surrogate)") from None
    if isinstance(prompt, str):
        if not prompt.strip():
            raise _MalformedError("its prompt is empty")
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise _MalformedError(f"its prompt is neither a text nor a list of messages, but {json.dumps(prompt)[:40]}")
    for message in prompt:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str) and _readable(message)):
            raise _MalformedError('a message is not {"role": ..., "content": text}')
    return prompt


def _readable(message: Mapping[str, Any]) -> bool:
    """Whether its content is a text, or a list of texts and images (files, or base64)."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return True
    return isinstance(content, str) or (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, Mapping)
            and (part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str)))
            for part in content
        )
    )
