from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from anchorlm.models._paths import INDEX
from anchorlm.records import UserError

WEIGHTS = "model.safetensors"

_LONGEST = 100_000_000
"""Bytes of a header, as the format allows."""


def weight_files(path: str, revision: str | None = None) -> list[Path] | None:
    """The safetensors of which transformers would load a checkpoint. None where they are not on this machine.

    Raises:
        UserError: Its index is damaged, or names files that are not there.
    """
    whole = _local(path, WEIGHTS, revision)
    if whole is not None:
        return [whole]
    index = _local(path, INDEX, revision)
    if index is None:
        return None
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{str(index)!r} is damaged: download it again.") from None
    found = {name: _local(path, name, revision) for name in names}
    lost = [name for name, file in found.items() if file is None]
    if lost and Path(path).is_dir():
        raise UserError(
            f"{path!r} lacks {len(lost)} of its {len(names)} files of weights ({', '.join(lost[:3])}): download all of "
            "its files again."
        )
    return None if lost else [file for file in found.values() if file is not None]


def _local(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a repository on the Hub that was downloaded before."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    try:
        cached = try_to_load_from_cache(path, name, revision=revision)
    except ValueError:  # no id of the Hub
        return None
    return Path(cached) if isinstance(cached, str) else None


def headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors on the meta device: their names and shapes, from the headers alone.

    Raises:
        UserError: A file is damaged, or shorter or longer than its header says.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, part in _header(file)[1].items():
            found[name] = torch.empty(part["shape"], device="meta")
    return found


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the contents of safetensors begin, and what they are. The library would map all of a file into memory."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size, _LONGEST):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        last = max((part["data_offsets"][1] for part in header.values()), default=0)
        if 8 + length + last != size:
            raise ValueError(f"it has {size} bytes, not {8 + length + last}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(file)!r} is no whole file of safetensors ({error}): download it again.") from None
    return 8 + length, header


def digest(files: Sequence[Path]) -> str:
    """Names what safetensors hold: every tensor's name, format, shape and bytes.

    It is the same for the same tensors in one file or in many, wherever they lie. All bytes are read once a process.
    A file that was read is known by its place, inode, size and times.

    Raises:
        UserError: A file is damaged.
    """
    sums: dict[str, list[Any]] = {}
    for file in files:
        known = file.stat()
        where = (str(file.resolve()), known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)
        sums |= dict(_sums(*where))
    return digest_of(sorted(sums.items()))


def digest_of(data: object) -> str:
    """A short digest of plain JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:32]


@lru_cache(maxsize=512)
def _sums(path: str, inode: int, size: int, *times: int) -> list[tuple[str, list[Any]]]:
    """Each tensor of a file with format, shape and SHA-256."""
    start, header = _header(Path(path))
    spans = [(start + part["data_offsets"][0], start + part["data_offsets"][1]) for part in header.values()]
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        # A digest leaves Python's lock to the other threads.
        sums = list(pool.map(lambda span: _sum(view, *span), spans))
    return [
        (name, [part["dtype"], part["shape"], found]) for (name, part), found in zip(header.items(), sums, strict=True)
    ]


def _sum(view: memoryview, first: int, last: int) -> str:
    with view[first:last] as part:
        return hashlib.sha256(part).hexdigest()
