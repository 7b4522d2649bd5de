from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from anchorlm.records import UserError

_GZIP = b"\x1f\x8b"
_FORMATS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".json": "", ".parquet": ""}
_BATCH = 1024
"""Rows that are read of a Parquet file at once."""


def table_rows(source: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a table, one by one: each with its line (its place from 1 in JSON lists and Parquet) and its fields.

    CSV, TSV and JSONL are streamed, also through gzip. A JSON list is read whole, and Parquet in batches. The format
    follows from the name, the compression from the bytes.

    Raises:
        UserError: (when read) The file cannot be read, has another format, or a row is malformed.
    """
    path = Path(source)
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    kind = suffix.lower()
    if kind not in _FORMATS:
        raise UserError(
            f"The name {path.name} tells no known format: give a {', '.join(_FORMATS)} file, or one of these as .gz."
        )
    try:
        if kind == ".parquet":
            yield from _parquet(path)
        else:
            with _opened(path) as file:
                yield from _comma(file, _FORMATS[kind], path.name) if _FORMATS[kind] else _json(file, kind, path.name)
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not UTF-8 text: convert it first.") from None
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{source!r} cannot be read ({why}): give a file with answers.") from None


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    opened = gzip.open if packed else open
    return cast(IO[str], opened(path, "rt", encoding="utf-8-sig", newline=""))


def _comma(file: IO[str], delimiter: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(f"Line {line} of {name} has {len(cells)} cells under {len(header)} columns: fix it.")
            if cells:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"Line {reader.line_num} of {name} is not valid CSV ({error}): fix it.") from None


def _json(file: IO[str], kind: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if kind == ".json":
        rows = _parsed(file.read(), 1, name)
        if not isinstance(rows, list):
            raise UserError(f"{name} is no JSON list of objects: write one, or JSONL.")
        pieces: Iterator[tuple[int, Any]] = enumerate(rows, start=1)
    else:
        pieces = ((line, _parsed(text, line, name)) for line, text in enumerate(file, start=1) if text.strip())
    for line, row in pieces:
        if not isinstance(row, dict):
            raise UserError(f"Line {line} of {name} is no JSON object: fix it.")
        yield line, row


def _parsed(text: str, line: int, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"Line {line} of {name} is not valid JSON ({error}): fix it.") from None


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            f"Reading {path.name} takes pyarrow: pip install pyarrow, or write the file as JSONL."
        ) from None
    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(_BATCH) for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except ArrowInvalid as error:
        raise UserError(f"{path.name} is no Parquet file ({error}): write it again.") from None
