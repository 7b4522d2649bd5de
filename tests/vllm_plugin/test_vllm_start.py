"""What is looked at in a server's configuration before it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from factories import tiny_model

from anchorlm.engine import GUARD
from anchorlm.records import UserError
from anchorlm.vllm import PluginSettings
from anchorlm.vllm._start import NAME, check_server, check_steered, prepare


def config(*, newer: bool = False, ahead: bool = True, drafts: Any = None, tokenizer: str = "model") -> Any:
    model = SimpleNamespace(
        runner_type="generate",
        logits_processors=None,
        model="model",
        tokenizer=tokenizer,
        is_diffusion=False,
        enable_prompt_embeds=False,
        get_diff_sampling_param=dict,
    )
    return SimpleNamespace(
        model_config=model,
        use_v2_model_runner=newer,
        speculative_config=drafts,
        kv_transfer_config=None,
        additional_config={},
        scheduler_config=SimpleNamespace(async_scheduling=ahead),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, data_parallel_size=2, worker_cls="vllm.v1.worker.cpu_worker.CPUWorker"
        ),
    )


MIXES = PluginSettings.parse({"anchor": "some/anchor"}, where="a test")
STEERS = PluginSettings.parse({"steering": {"calm": "missing.safetensors"}}, where="a test")


def test_the_older_runner_is_told_the_processors_name_and_the_newer_one_needs_none() -> None:
    older, newer = config(), config(newer=True)
    prepare(older, MIXES)
    prepare(newer, MIXES)
    prepare(older, MIXES)  # a second time changes nothing
    assert older.model_config.logits_processors == [NAME]
    assert newer.model_config.logits_processors is None


@pytest.mark.parametrize("settings", [MIXES, STEERS])
@pytest.mark.parametrize("newer", [False, True])
def test_a_server_that_speculates_is_refused(settings: PluginSettings, newer: bool) -> None:
    with pytest.raises(UserError, match="speculat"):
        prepare(config(newer=newer, drafts=object()), settings)


def test_a_server_that_hides_its_last_tokens_is_refused_where_an_anchor_must_see_them() -> None:
    with pytest.raises(UserError, match="--no-async-scheduling"):
        check_server(config(), MIXES)
    check_server(config(), STEERS)
    check_server(config(ahead=False), MIXES)


def test_a_tokenizer_in_another_place_is_refused() -> None:
    with pytest.raises(UserError, match="--tokenizer"):
        prepare(config(tokenizer="elsewhere"), MIXES)


@pytest.mark.parametrize(("field", "words"), [("is_diffusion", "many at once"), ("enable_prompt_embeds", "embeddings")])
def test_a_server_whose_answers_or_prompts_an_anchor_cannot_follow_is_refused(field: str, words: str) -> None:
    made = config()
    setattr(made.model_config, field, True)
    with pytest.raises(UserError, match=words):
        prepare(made, MIXES)


def test_a_floor_that_the_models_own_defaults_would_pass_is_refused_at_the_start() -> None:
    """Each request that leaves the field out would be an error that tells its client to leave it out."""
    made = config()
    made.model_config.get_diff_sampling_param = lambda: {"temperature": 0.7, "repetition_penalty": 1.05}
    floor = PluginSettings.parse({"anchor": "some/anchor", "floor": {"alpha": 0.3}}, where="a test")
    with pytest.raises(UserError, match="--override-generation-config '{\"repetition_penalty\": 1.0}'"):
        prepare(made, floor)
    prepare(made, MIXES)
    made.model_config.get_diff_sampling_param = lambda: {"temperature": 0.7, "repetition_penalty": 1.0}
    prepare(made, floor)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: setattr(made, "kv_transfer_config", object()), "keys and values"),
        (lambda made: setattr(made.parallel_config, "pipeline_parallel_size", 2), "one stage"),
        (lambda made: made.additional_config.update({GUARD: True}), "data_parallel_size"),
    ],
)
def test_what_steering_cannot_hold_in_is_refused(change: Any, words: str) -> None:
    made = config()
    check_steered(made)
    change(made)
    with pytest.raises(UserError, match=words):
        check_steered(made)


def test_steering_wants_its_files_the_older_runner_and_its_own_worker() -> None:
    with pytest.raises(UserError, match="save_steering"):
        prepare(config(), STEERS)
    with pytest.raises(UserError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        prepare(config(newer=True), STEERS)
    other = config()
    other.parallel_config.worker_cls = "mine.Worker"
    with pytest.raises(UserError, match=r"mine\.Worker"):
        prepare(other, STEERS)


VALIDATE = """
from vllm import SamplingParams

from anchorlm.vllm import register
from anchorlm.vllm.processor import AnchorProcessor

for begin in (lambda: None, register):
    begin()
    try:
        AnchorProcessor.validate_params(SamplingParams())
    except ValueError as error:
        print(error)
    else:
        print("taken")
"""


def test_a_server_with_an_anchor_that_started_without_our_part_answers_nothing() -> None:
    """VLLM_PLUGINS may leave it out: then nothing keeps the server from speculating past the anchor."""
    pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
    told = {"ANCHORLM_VLLM_ANCHOR": "some/anchor", "VLLM_PLUGINS": ""}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", VALIDATE], env=os.environ | told, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    before, after = ended.stdout.strip().splitlines()[-2:]
    assert before.endswith("name anchorlm in VLLM_PLUGINS.")
    assert after == "taken"


def test_blocks_of_transformers_are_refused_though_they_are_named_like_vllms() -> None:
    pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
    from anchorlm.vllm.worker import _blocks

    model = tiny_model("llama").model
    depth = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=model.config))
    with pytest.raises(UserError, match="transformers.models.llama.* cannot be read in vLLM yet"):
        _blocks(model, depth)


def test_a_prompt_of_which_nothing_is_read_yet_leaves_nothing_behind() -> None:
    """Clients may leave there, as often as they like, and nobody would take it away."""
    pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
    from anchorlm.vllm.worker import SteeredWorker

    request = SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"anchorlm_capture": 1}), num_prompt_tokens=9)
    worker: Any = object.__new__(SteeredWorker)
    worker._guarded, worker._files, worker._steered = False, {}, SimpleNamespace(lay_out=lambda spans: None)
    for read, count, wanted in ((0, 4, []), (4, 4, []), (8, 1, [0]), (9, 1, [])):
        batch = SimpleNamespace(req_ids=["one"], num_computed_tokens_cpu=[read])
        worker.model_runner = SimpleNamespace(input_batch=batch, requests={"one": request})
        worker._lay_out([count])
        assert list(worker._reads) == wanted
