from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anchorlm.cli._loading import quiet_libraries
from anchorlm.guard import Guard
from anchorlm.models import PLAIN_TEMPLATE, CausalModel, accelerator, default_place
from anchorlm.records import AnchorLMError
from anchorlm.zoo import members, real_members

_PACKAGES = ("anchorlm", "torch", "transformers", "tokenizers", "accelerate", "peft", "pydantic", "gguf")


def run(as_json: bool) -> None:
    """Prints the findings.

    Raises:
        Exit: With 1 if the tiny run failed.
    """
    quiet_libraries()
    found = findings()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        table = Table(show_header=False)
        for name, value in found.items():
            table.add_row(name.replace("_", " "), _line(value))
        Console().print(table)
    if not found["tiny_run"]["works"]:
        raise typer.Exit(1)


def findings() -> dict[str, Any]:
    """Everything about this machine that matters, as plain JSON data."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": _device(),
        "models_go_to": default_place(accelerator()),
        "memory_gb": _memory(),
        "cache": os.environ.get("ANCHORLM_CACHE") or str(Path.home() / ".cache" / "anchorlm"),
        "hub_cache": _hub_cache(),
        "embedded_models": [one.name for one in members() if one.size],
        "real_models": [one.name for one in real_members() if one.ready],
        "tiny_run": _tiny_run(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    if torch.cuda.is_available():
        each = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return {"kind": "cuda", "devices": [{"name": one.name, "memory_gb": _gb(one.total_memory)} for one in each]}
    if torch.backends.mps.is_available():
        return {"kind": "mps", "devices": [{"name": platform.processor()}]}
    return {"kind": "cpu", "devices": [], "threads": torch.get_num_threads()}


def _memory() -> float | None:
    try:
        return _gb(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _gb(size: int) -> float:
    return round(size / 2**30, 1)


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _tiny_run() -> dict[str, Any]:
    """A random model of two layers answers through the whole path: guard, defense, engine."""
    start = perf_counter()
    try:
        response = Guard(_tiny_model()).chat("Hello", max_new_tokens=8)
    except (AnchorLMError, RuntimeError) as error:
        return {"works": False, "why": str(error)}
    return {"works": True, "tokens": len(response.token_ids), "seconds": round(perf_counter() - start, 3)}


def _tiny_model() -> CausalModel:
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", chat_template=PLAIN_TEMPLATE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CausalModel.wrap(LlamaForCausalLM(config), tokenizer, name="a tiny random model")


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_line(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(_line(part) for part in value) or "none"
    return str(value)
