from __future__ import annotations

import os
from pathlib import Path

import pytest
from factories import tiny_model, tiny_tokenizer
from mixtures import loaded

from anchorlm.engine import LocalEngine
from anchorlm.models import ModelSettings, convert

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Of each vLLM that is started: where all cores are busy, threads wait seconds for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def target() -> LocalEngine:
    return LocalEngine(tiny_model("llama"))


@pytest.fixture(scope="session", params=["of another family", "of the same vocabulary"])
def anchor(request: pytest.FixtureRequest) -> LocalEngine:
    if request.param == "of the same vocabulary":
        return LocalEngine(tiny_model("llama", seed=7, vocab_size=311))
    tokenizer = tiny_tokenizer(290, text="Sorry, I cannot help you with that request. ")
    return LocalEngine(tiny_model("gpt_neox", tokenizer=tokenizer, vocab_size=333))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2 as an ordinary folder, made of the package that `make test-vllm` installs."""
    folder = ROOT / "build" / "vllm" / "smollm2"
    if not folder.is_dir():
        convert(ModelSettings.parse({"path": "real-smollm2", "dtype": "float32"}, where="a model"), folder)
    return folder


@pytest.fixture(scope="module")
def here(smollm2: Path) -> LocalEngine:
    """SmolLM2 in our own engine."""
    return loaded(smollm2)


@pytest.fixture(scope="session")
def small_anchor() -> Path:
    """A tiny aligned model with a vocabulary of its own."""
    folder = ROOT / "src/anchorlm/zoo/members/b-chat"
    if not (folder / "config.json").is_file():
        pytest.skip("the embedded models are not built here: make zoo")
    return folder
