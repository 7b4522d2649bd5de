"""The tables of a pair on disk: built once, then read in milliseconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anchorlm.files import cache_folder
from anchorlm.tokens._maps import NOWHERE, Tables
from anchorlm.tokens._vocabulary import ByteVocabulary

_FORMAT = 2


def cache_file(folder: Path | None, kind: str, anchor: ByteVocabulary, target: ByteVocabulary) -> Path:
    """Where the tables of this pair lie."""
    key = hashlib.sha256(f"{_FORMAT}/{kind}/{anchor.digest}/{target.digest}".encode()).hexdigest()
    return (folder or cache_folder()) / "projections" / f"{key[:40]}.safetensors"


def load(file: Path, anchor: ByteVocabulary, target: ByteVocabulary) -> Tables | None:
    """The tables in `file`. None where there are none or they are damaged."""
    if not file.is_file():
        return None
    try:
        stored = load_file(file)
        tables = Tables(stored["index"], stored["fate"], stored["open"], stored["shared"])
    except (SafetensorError, OSError, KeyError):
        return None
    sound = (
        tables.index.shape == tables.fate.shape == (anchor.size,)
        and tables.index.dtype == torch.int32
        and bool((tables.index >= NOWHERE).all() and (tables.index < target.size).all())
    )
    return tables if sound else None


def save(file: Path, tables: Tables) -> None:
    """Writes the tables so that a reader sees all of them or none. A folder that cannot be written is no error."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
        os.close(handle)
        try:
            save_file({name: getattr(tables, name) for name in ("index", "fate", "open", "shared")}, part)
            os.replace(part, file)
        finally:
            Path(part).unlink(missing_ok=True)
