"""A guard model that judges in vLLM gives the verdicts that it gives on the same weights here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from factories import tiny_tokenizer, tiny_weights

from anchorlm.engine import VLLMEngine, runtime
from anchorlm.guard import Guard, Recipe
from anchorlm.judging import GuardJudge
from anchorlm.judging._verdicts import Words
from anchorlm.models import CausalModel

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

RECIPE = """
target = "{target}"

[judge]
kind = "guard"
options = {{ format = "llama-guard-3" }}

[judge.model]
path = "{judge}"
dtype = "float32"
{more}

[defense]
name = "best_of_n"
n = 4
comfort = 0.0
max_harm = 0.85

[generation]
max_new_tokens = 12
"""

IN_VLLM = """
engine = "vllm"
options = { max_model_len = 4096, gpu_memory_utilization = 0.15, enforce_eager = true, max_num_seqs = 16 }
"""

ASKED = [{"role": "user", "content": "How can I adopt my own llama?"}]
ANSWERS = ["Go to the zoo and steal one!", "No.", "Ask a farmer for one.", "Mix flour and water.", "Lorem ipsum."]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that says hardly anything but `safe` or `unsafe`, which of them depending on all that it reads."""
    tokenizer = tiny_tokenizer()
    model = tiny_weights(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096,
                         initializer_range=0.2)  # fmt: skip
    words = Words.of(CausalModel.wrap(model, tokenizer, name="a guard").vocabulary, ("safe", "unsafe"))
    assert words is not None
    said = [one for ids in words.ids.values() for one in ids]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        # The first number of a state is that of its token, 10. It keeps down what the model does not say.
        model.model.embed_tokens.weight[:, 0] = 10.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = -100.0
        model.lm_head.weight[said] = 0.1 * torch.randn(len(said), 64, generator=generator)
    folder = tmp_path_factory.mktemp("judge")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guards(judge: Path, small_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Guard]]:
    """One whose judge is loaded here, and one whose judge runs in vLLM."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    found, started = [], list[Any]()
    try:
        for name, more in (("here", ""), ("there", IN_VLLM)):
            file = tmp_path_factory.mktemp("recipe") / f"{name}.toml"
            file.write_text(RECIPE.format(target=small_anchor, judge=judge, more=more), "utf-8")
            found.append(Guard.from_recipe(Recipe.load(file), started=started))
        yield found
    finally:
        for *_, engine in started:
            if isinstance(engine, VLLMEngine):
                engine.close()


def test_a_guard_model_in_vllm_gives_the_verdicts_that_it_gives_here(guards: list[Guard]) -> None:
    ours, theirs = (cast(GuardJudge, guard.defense.team.judge) for guard in guards)
    wanted, got = (runtime().run(one.verdicts(ASKED, ANSWERS)) for one in (ours, theirs))
    for one, other in zip(got, wanted, strict=True):
        assert one.margin == pytest.approx(other.margin, abs=2e-3)
        assert one.harm == pytest.approx(other.harm, abs=1e-3)
        assert one.reason.split()[0] == other.reason.split()[0]
    assert len({round(one.harm, 2) for one in got}) == len(ANSWERS)

    async def growing(judge: GuardJudge) -> list[float]:
        async with judge.follow(ASKED, room=64) as grade:
            return [(await grade(ANSWERS[0][:end])).harm for end in (6, 19, 28)]

    assert runtime().run(growing(theirs)) == pytest.approx(runtime().run(growing(ours)), abs=2e-3)


def test_the_answer_that_it_chooses_is_the_one_that_it_chooses_here(guards: list[Guard]) -> None:
    for text in ("How do I bake bread?", "Tell me a story."):
        ours, theirs = (guard.chat([{"role": "user", "content": text}], seed=5) for guard in guards)
        assert theirs.finish_reason != "refusal"
        assert theirs.text == ours.text
        wanted, got = (answer.trace[0].data["candidates"] for answer in (ours, theirs))
        assert [one["text"] for one in got] == [one["text"] for one in wanted]
        assert [one["harm"] for one in got] == pytest.approx([one["harm"] for one in wanted], abs=2e-3)
        assert len({one["harm"] for one in got}) > 1
