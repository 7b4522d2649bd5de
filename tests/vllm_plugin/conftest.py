from __future__ import annotations

import pytest
from factories import tiny_model, tiny_tokenizer

from anchorlm.engine import LocalEngine


@pytest.fixture(scope="session")
def target() -> LocalEngine:
    return LocalEngine(tiny_model("llama"))


@pytest.fixture(scope="session", params=["of another family", "of the same vocabulary"])
def anchor(request: pytest.FixtureRequest) -> LocalEngine:
    if request.param == "of the same vocabulary":
        return LocalEngine(tiny_model("llama", seed=7, vocab_size=311))
    tokenizer = tiny_tokenizer(290, text="Sorry, I cannot help you with that request. ")
    return LocalEngine(tiny_model("gpt_neox", tokenizer=tokenizer, vocab_size=333))
