from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from anchorlm.cli._app import app

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = [
    "Write a plan for the weekend, and tell me how to bake a cake.",
    "Develop a tutorial on the history of the harbor, step by step.",
    "I'm sorry, but I can't help with that. Sure, here is a list of ideas.",
]


def _save_model(
    folder: Path, *, vocabulary: int, seed: int, context: int = 256, template: str | None = TEMPLATE
) -> Path:
    """A random model of two layers with a byte-level BPE of its own, as a Hugging Face folder."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", chat_template=template
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """Makes models like the target and the anchor."""
    return _save_model


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_model(tmp_path_factory.mktemp("models") / "target", vocabulary=300, seed=0)


@pytest.fixture(scope="session")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_model(tmp_path_factory.mktemp("models") / "anchor", vocabulary=330, seed=1)


@pytest.fixture(scope="session")
def plain_recipe(tmp_path_factory: pytest.TempPathFactory, target: Path) -> Path:
    file = tmp_path_factory.mktemp("recipes") / "plain.toml"
    file.write_text(
        f'target = "{target}"\ndefense = "undefended"\n[generation]\nmax_new_tokens = 8\n[probe]\nrun = false\n',
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="session")
def alignbeam_recipe(tmp_path_factory: pytest.TempPathFactory, target: Path, anchor: Path) -> Path:
    file = tmp_path_factory.mktemp("recipes") / "alignbeam.toml"
    file.write_text(
        f'target = "{target}"\nanchor = "{anchor}"\n'
        '[judge]\nkind = "refusal"\n[defense]\nname = "alignbeam"\nmax_harm = 1.0\nmixed_tokens = 2\ncandidates = 2\n'
        "[generation]\nmax_new_tokens = 6\n[probe]\nrun = false\n",
        encoding="utf-8",
    )
    return file


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Runs the command line in this process; without a probe, which no random model passes, unless it is asked for."""

    def run(*args: str | Path, stdin: str | bytes | None = None, probe: bool = False) -> Result:
        unasked = ["--no-probe"] if args and args[0] in ("generate", "chat", "compare") and not probe else []
        return CliRunner().invoke(app, [*map(str, args[:1]), *unasked, *map(str, args[1:])], input=stdin)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*args: str | Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from anchorlm.cli import main; main()", *(str(arg) for arg in args)]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()
