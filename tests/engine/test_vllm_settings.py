"""A target in vLLM, as far as it is known without vLLM. The engine itself: tests/vllm_plugin/test_vllm_engine.py."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import tiny_model

from anchorlm.cli._recipes import digest
from anchorlm.engine._vllm_start import started
from anchorlm.engine._vllm_words import written
from anchorlm.evaluation import CompareRecipe
from anchorlm.guard import Guard, Recipe
from anchorlm.models import VLLMSettings, identity
from anchorlm.records import UserError
from anchorlm.team import JudgeSettings


def recipe(target: Any, **sections: Any) -> Recipe:
    return Recipe.parse({"target": target, "defense": "undefended", **sections}, where="a test")


@pytest.mark.parametrize("name", ["ANCHORLM_VLLM", "ANCHORLM_VLLM_ANCHOR", "ANCHORLM_VLLM_FLOOR_ALPHA"])
def test_what_is_set_for_a_server_of_your_own_does_not_reach_the_vllm_of_a_guard(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would guide judges and anchors, too."""
    monkeypatch.setenv(name, "0.5")
    settings = VLLMSettings.parse({"path": "org/model", "engine": "vllm"}, where="a test")
    with pytest.raises(UserError, match=f"{name} is for a vLLM server of your own: unset it"):
        started(settings, tiny_model())


def test_a_recipe_says_that_vllm_runs_the_target() -> None:
    found = recipe({"path": "org/model", "engine": "vllm", "options": {"max_model_len": 512}}).target
    assert isinstance(found, VLLMSettings)
    assert (found.path, found.options, found.top_logprobs) == ("org/model", {"max_model_len": 512}, 200)
    assert VLLMSettings.parse(found.model_dump(exclude_unset=True), where="a test") == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "org/model", "engine": "vllm"}, {"path": "org/model"}),
        ({"path": "org/model", "engine": "vllm"}, {"path": "org/model", "engine": "vllm", "top_logprobs": 50}),
        ({"endpoint": "http://a/v1", "model": "x"}, {"endpoint": "http://b/v1", "model": "x"}),
        ({"endpoint": "http://a/v1", "model": "x"}, {"endpoint": "http://a/v1", "model": "y"}),
        ({"endpoint": "http://a/v1", "model": "x"}, {"endpoint": "http://a/v1", "model": "x", "prompts": "chat"}),
    ],
)
def test_recipes_that_ask_different_models_are_different(one: Any, other: Any) -> None:
    assert recipe(one).model_dump_json() != recipe(other).model_dump_json()
    assert digest(recipe(one)) != digest(recipe(other))
    assert Recipe.parse(recipe(one).model_dump(exclude_unset=True), where="a test") == recipe(one)


@pytest.mark.parametrize("model", [{"endpoint": "http://a/v1"}, {"path": "org/model", "engine": "vllm"}])
@pytest.mark.parametrize("role", ["target", "anchor"])
def test_a_comparison_loads_its_models_itself(model: Any, role: str) -> None:
    given = {"targets": {"x": model if role == "target" else "org/x"}, "defenses": {"undefended": {}},
             "data": {"plain": {"embedded": "plain"}}, **({"anchor": model} if role == "anchor" else {})}  # fmt: skip
    with pytest.raises(UserError, match="without endpoint and engine"):
        CompareRecipe.parse(given, where="a test")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"adapter": "org/adapter"}, "adapter"),
        ({"attention": "sdpa"}, "attention"),
        ({"dtype": "int8"}, "quantization in options"),
        ({"options": {"max_logprobs": 3}}, "max_logprobs cannot be set"),
        ({"options": {"logprobs_mode": "processed_logprobs"}}, "logprobs_mode cannot be set"),
        ({"top_logprobs": 1}, "top_logprobs"),
    ],
)
def test_what_does_not_fit_vllm_is_one_sentence(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        recipe({"path": "org/model", "engine": "vllm", **more})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("engine", ["sglang", "tgi", "llama.cpp", "ollama", "vlm", "VLLM", "", 3, None])
@pytest.mark.parametrize("more", [{"path": "org/model"}, {"model": "llama3"}], ids=lambda more: next(iter(more)))
def test_another_engine_is_told_how_a_server_is_named(engine: Any, more: dict[str, str]) -> None:
    section = {**more, "engine": engine}
    for made in (lambda: recipe(section), lambda: recipe("org/model", anchor=section), lambda: Guard(section),
                 lambda: JudgeSettings.parse({"kind": "rubric", "model": section}, where="a test")):  # fmt: skip
        with pytest.raises(UserError) as raised:
            made()
        said = str(raised.value)
        assert said.startswith(f"A guard starts no engine {engine!r}, only vllm: give a server that runs already as "
                               'endpoint = "http://host:port/v1", and leave engine out to load ')  # fmt: skip
        assert said.endswith(" here.")


def test_a_classifier_does_not_run_in_vllm() -> None:
    with pytest.raises(UserError, match="leave engine out"):
        JudgeSettings.parse({"kind": "classifier", "model": {"path": "org/x", "engine": "vllm"}}, where="a test")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_extra_names_the_command(tmp_path: Path) -> None:
    tiny_model("llama").model.save_pretrained(tmp_path)
    tiny_model("llama").tokenizer.save_pretrained(tmp_path)
    target = {"path": str(tmp_path), "engine": "vllm"}
    with pytest.raises(UserError, match=r"pip install 'anchorlm\[vllm\]'"):
        Guard(target, "undefended")
    found = Guard.check(recipe(target))
    assert found.gaps == ["target: A model in vLLM needs vLLM: pip install 'anchorlm[vllm]'."]


@pytest.mark.parametrize(
    ("given", "seen"),
    [(None, None), ("", "anchorlm"), ("a,b", "a,b,anchorlm"), ("anchorlm", "anchorlm"), ("a,anchorlm", "a,anchorlm"),
     ("anchorlm2", "anchorlm2,anchorlm")],
)  # fmt: skip
def test_the_vllm_of_a_guard_loads_our_plugin_whatever_else_it_should_load(given: str | None, seen: str | None) -> None:
    code = "import os; from anchorlm.engine._vllm_process import own; own(); print(os.environ.get('VLLM_PLUGINS'))"
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_PLUGINS"}
    environment |= {} if given is None else {"VLLM_PLUGINS": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(seen), done.stderr


def test_two_models_without_their_weights_are_told_apart_by_their_files(tmp_path: Path) -> None:
    from anchorlm.models import CausalModel, ModelSettings

    found = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        model = tiny_model("llama", seed=seed)
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        found.append(identity(CausalModel.outline(ModelSettings(path=str(folder)))))
    one, other = ({name: value for name, value in each.items() if name != "name"} for each in found)
    assert one != other


@pytest.mark.parametrize(
    ("finish", "reason", "ids", "ended"),
    [
        ("stop", None, [5], True),  # its own end of text, which it names among the tokens
        ("stop", 6, [5], True),  # a token that ends the turn
        ("stop", "User:", [5, 6], True),  # a text: it is cut where texts are known
        ("length", None, [5, 6], False),
        (None, None, [5, 6], False),
    ],
)
def test_the_token_that_ends_an_answer_is_not_part_of_it(
    finish: str | None, reason: Any, ids: list[int], ended: bool
) -> None:
    step = {5: SimpleNamespace(logprob=-0.5, rank=1), 6: SimpleNamespace(logprob=-1.5, rank=2)}
    answer = SimpleNamespace(finish_reason=finish, stop_reason=reason, token_ids=[5, 6], logprobs=[step, step])
    found = written(answer)
    assert (found.ids, found.ended) == (ids, ended)
    assert [(one.token, one.logprob) for one in found.scores] == [(5, -0.5), (6, -1.5)][: len(ids)]
    assert found.scores[0].top == ((5, -0.5), (6, -1.5))
