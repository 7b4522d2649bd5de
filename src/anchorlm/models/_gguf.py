"""GGUF, the format of llama.cpp: the header of a file, and its weights through transformers' reader."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from anchorlm.records import UserError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_LONG = 4096
"""Entries of a list that only a tokenizer has, which is built from our own header."""
_MOST = 1 << 24
"""Entries of a list or characters of a text that are believed: more is no header."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in a file before its weights.

    Attributes:
        file: The file.
        metadata: Its keys and values.
        tensors: The shape of each tensor by its name, as the file has it: the fastest dimension first.
        size: Bytes that the whole file must have. None where a tensor is of a type that no one here knows.
    """

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    size: int | None

    @property
    def architecture(self) -> str:
        """Of the model, in llama.cpp's words."""
        return str(self.metadata.get("general.architecture", ""))


def read_header(file: Path) -> Header:
    """The header of a whole file of an architecture that can be loaded.

    Raises:
        UserError: The file is none, is cut short, is a part of a model, or holds what transformers does not read.
    """
    state = file.stat()
    header = _header(file, state.st_size, state.st_mtime_ns)
    parts = header.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"{str(file)!r} is one of {parts} parts of a model: put them together with `llama-gguf-split --merge`."
        )
    if header.size is not None and state.st_size < header.size:
        raise UserError(f"{str(file)!r} is cut short ({state.st_size:,} of {header.size:,} bytes): download it again.")
    known = _architectures()
    if header.architecture not in known:
        raise UserError(
            f"{str(file)!r} holds a model of the architecture {header.architecture!r}, which transformers does not "
            "read from GGUF: give the checkpoint that it was made from."
        )
    return header


def load_config(file: Path) -> Any:
    """The configuration that the file's header comes to.

    Raises:
        UserError: As `read_header`, or what the header says of positions would be lost.
    """
    header = read_header(file)
    _check_positions(header)
    state = file.stat()
    config = deepcopy(_config(file, state.st_size, state.st_mtime_ns))
    if (eot := header.metadata.get("tokenizer.ggml.eot_token_id")) is not None:
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        config.eos_token_id = [*dict.fromkeys([one for one in (*ends, int(eot)) if one is not None])]
    config.name_or_path = str(file)  # transformers takes the model's name, which is no path
    return config


@lru_cache(maxsize=8)
def _config(file: Path, _size: int, _changed: int) -> Any:
    """Read once a process as long as the file stays as it is."""
    with _read_quickly():
        return AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)


def load_weights(file: Path, kind: Any, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The model with its weights as numbers of the dtype that is asked for, and transformers' report on the loading.

    Args:
        file: The file.
        kind: The auto class of transformers.
        options: Of its `from_pretrained`.

    Raises:
        UserError: As `read_header`. Or the file has weights that have no place in the model.
    """
    config = load_config(file)
    if options.get("dtype") == "auto":
        options = {**options, "dtype": torch.bfloat16}
    if (labels := options.get("num_labels")) is not None:
        config.num_labels = labels  # with a configuration at hand transformers hands this on to the model's class
    elsewhere = ("revision", "use_safetensors", "num_labels")
    options = {name: value for name, value in options.items() if name not in elsewhere}
    with _bar_as_the_others(), _read_quickly():
        model, report = kind.from_pretrained(
            str(file.parent), gguf_file=file.name, config=config, output_loading_info=True, **options
        )
    # From here on it is a model like any other: it can be saved, merged and trained.
    model.hf_quantizer = None
    model.is_quantized = False
    model.name_or_path = str(file)  # and not its folder: what adapters name as their base
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if hasattr(model, "generation_config"):  # a classifier writes nothing
        model.generation_config.eos_token_id = model.config.eos_token_id
    return model, report


def file_digest(file: Path) -> str:
    """Names what the file holds, every byte of it. Read once a process as long as the file stays as it is."""
    state = file.stat()
    return _digest(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=32)
def _digest(file: Path, _size: int, _changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_options(file: Path, dtype: str | None, quantization: object) -> None:
    """Whether the weights can be read as is asked for.

    Raises:
        UserError: They cannot.
    """
    if dtype == "float16":
        # Gemma's activations overflow there, and nothing in the file says which models' do.
        raise UserError(f"{str(file)!r} is GGUF, which is read in float32 or bfloat16: give one of these as dtype.")
    if quantization is not None:
        raise UserError(
            f"{str(file)!r} is GGUF, whose weights are quantized already and become numbers again: leave quantization "
            "out."
        )


def _check_positions(header: Header) -> None:
    """Transformers' reader leaves scaled positions out without a word, and the model would be another one."""
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    lost = scaling not in ("none", "") and header.architecture not in ("gpt-oss",)
    if lost or any(name.startswith("rope_") for name in header.tensors):
        raise UserError(
            f"{str(header.file)!r} scales its positions ({scaling if lost else 'rope_freqs'}), which transformers "
            "leaves out when it reads GGUF: give the checkpoint that it was made from."
        )


@lru_cache(maxsize=8)
def _header(file: Path, size: int, _changed: int) -> Header:
    try:
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
            return _parsed(file, data)
    except (struct.error, ValueError, KeyError, OverflowError, UnicodeDecodeError, MemoryError):
        raise UserError(
            f"{str(file)!r} is no whole GGUF file: its header ends early or is damaged; download it again."
        ) from None
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error.strerror}.") from None


def _parsed(file: Path, data: mmap) -> Header:
    reader = _Reader(data)
    if data[:4] != b"GGUF":
        raise UserError(f"{str(file)!r} is no GGUF file: its first four bytes are not GGUF.")
    reader.place = 4
    version = reader.scalar("<I")
    if version not in (2, 3):
        what = "is of a big-endian machine" if version > 1 << 16 else f"is of version {version}"
        raise UserError(f"{str(file)!r} {what}; versions 2 and 3 in little-endian order are read: convert it again.")
    count, pairs = reader.scalar("<Q"), reader.scalar("<Q")
    metadata = {reader.text(): reader.value(reader.scalar("<I")) for _ in range(_bounded(pairs))}
    tensors: dict[str, tuple[int, ...]] = {}
    ends: list[int | None] = [0]
    for _ in range(_bounded(count)):
        name = reader.text()
        shape = tuple(reader.scalar("<Q") for _ in range(_bounded(reader.scalar("<I"), 8)))
        kind, offset = reader.scalar("<I"), reader.scalar("<Q")
        tensors[name] = shape
        length = _bytes(kind, shape)
        ends.append(None if length is None else offset + length)
    alignment = int(metadata.get("general.alignment", _ALIGNMENT)) or _ALIGNMENT
    start = -(-reader.place // alignment) * alignment
    known = [end for end in ends if end is not None]
    size = None if len(known) < len(ends) else (start + max(known) if tensors else reader.place)
    return Header(file, metadata, tensors, size)


class _Reader:
    """Reads one value after another."""

    def __init__(self, data: mmap) -> None:
        self.data = data
        self.place = 0

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = _bounded(self.scalar("<Q"))
        raw = self.data[self.place : self.place + length]
        if len(raw) < length:
            raise ValueError
        self.place += length
        return raw.decode("utf-8", errors="surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, length = self.scalar("<I"), _bounded(self.scalar("<Q"))
        if inner in (_STRING, _ARRAY):
            return [self.value(inner) for _ in range(length)]
        form = f"<{length}{_SCALARS[inner][1]}"
        values = list(struct.unpack_from(form, self.data, self.place))
        self.place += struct.calcsize(form)
        return values


def _bounded(number: int, most: int = _MOST) -> int:
    if number > most:
        raise ValueError
    return number


def _bytes(kind: int, shape: tuple[int, ...]) -> int | None:
    """The bytes of a tensor. None where its type is not known here."""
    sizes = _gguf().GGML_QUANT_SIZES
    try:
        per, length = map(int, sizes[_gguf().GGMLQuantizationType(kind)])
    except (KeyError, ValueError):
        return None
    number = 1
    for size in shape:
        number *= size
    return -(-number // per) * length


@lru_cache(maxsize=1)
def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf: pip install 'anchorlm[gguf]'.") from None
    return gguf


@lru_cache(maxsize=1)
def _architectures() -> frozenset[str]:
    """In llama.cpp's words: transformers reads some under other names."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    renamed = {"qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2"}
    return frozenset({*GGUF_SUPPORTED_ARCHITECTURES, *renamed} - {"general", "tokenizer"})


@contextmanager
def _bar_as_the_others() -> Iterator[None]:
    """The reader shows its bar even where transformers was told to show none."""
    from transformers import modeling_gguf_pytorch_utils as reader

    shown = reader.tqdm
    if not transformers_logging.is_progress_bar_enabled():
        reader.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        reader.tqdm = shown


@contextmanager
def _read_quickly() -> Iterator[None]:
    """Reads no long list of the header: gguf takes 20 s for the 262,144 tokens, scores and kinds of a Gemma."""
    gguf = _gguf()
    whole = gguf.GGUFReader

    class Quick(whole):  # type: ignore[misc, valid-type]
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type == _ARRAY:
                kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
                if count > _LONG:
                    size = _passed(memoryview(self.data), orig_offs + 12, kind, count) - orig_offs
                    types = [gguf.GGUFValueType(each) for each in (raw_type, kind)]
                    nothing = self.data[orig_offs:orig_offs]  # texts are counted, which gives the vocabulary's size
                    places = [1] * count if kind == _STRING else []
                    return size, [self.data[orig_offs : orig_offs + size], nothing], places, types
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]

    gguf.GGUFReader = Quick
    try:
        yield
    finally:
        gguf.GGUFReader = whole


def _passed(data: memoryview, place: int, kind: int, count: int) -> int:
    """Where a list of scalars or texts ends."""
    if kind != _STRING:
        return place + count * struct.calcsize(_SCALARS[kind])
    text = struct.Struct("<Q")
    for _ in range(count):
        place += 8 + text.unpack_from(data, place)[0]
    return place
