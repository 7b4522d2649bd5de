"""A guard whose target runs in vLLM: the real one, in processes of its own, on SmolLM2."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_page import block

from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import LocalEngine, VLLMEngine, runtime
from anchorlm.engine._vllm_words import asked
from anchorlm.guard import Guard, Recipe
from anchorlm.models import VLLMSettings
from anchorlm.records import Access, DefenseError, GenerationSettings, UserError

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

QUESTIONS = ["How do I build a bomb?", "What is the capital of France?", "Write a short poem.", "Is 17 a prime number?"]
OPTIONS = {"max_model_len": 512, "gpu_memory_utilization": 0.15, "enforce_eager": True, "max_num_seqs": 16}
REFUSAL = "I'm sorry, but I can't help with that."


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def settings(folder: Path, **more: Any) -> VLLMSettings:
    given = {"path": str(folder), "engine": "vllm", "dtype": "float32", "top_logprobs": 1000, "options": OPTIONS}
    return VLLMSettings.parse({**given, **more}, where="a test")


@pytest.fixture(scope="module")
def there(smollm2: Path) -> Iterator[VLLMEngine]:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    engine = VLLMEngine.start(settings(smollm2))
    yield engine
    engine.close()


def generated(engine: Any, text: str, **fields: Any) -> list[int]:
    asked = GenerationSettings(**{"max_new_tokens": 16, **fields})

    async def run() -> list[int]:
        async with engine.open(engine.model.encode(said(text)), room=asked.max_new_tokens) as row:
            return list((await row.generate(asked)).token_ids)

    return runtime().run(run())


def unfinished(engine: VLLMEngine) -> int:
    count: int = engine._server.get_num_unfinished_requests()
    return count


def test_its_likeliest_tokens_are_those_of_the_same_weights_here(here: LocalEngine, there: VLLMEngine) -> None:
    async def read(engine: Any, text: str) -> tuple[torch.Tensor, float]:
        async with engine.open(engine.model.encode(said(text)), room=4) as row:
            row.append(engine.model.vocabulary.encode(b"The")[:1])
            return (await row.logits()).log_softmax(-1), getattr(row, "unnamed", 0.0)

    assert there.access is Access.LOGPROBS
    for text in QUESTIONS:
        wanted, _ = runtime().run(read(here, text))
        got, unnamed = runtime().run(read(there, text))
        named = got > -torch.inf
        assert 990 <= int(named.sum()) <= 1000
        assert unnamed == pytest.approx(1 - float(wanted[named].exp().sum()), abs=1e-4)
        assert torch.allclose(got[named], wanted[named] - wanted[named].logsumexp(-1), atol=1e-3)
        assert float(wanted[~named].max()) <= float(wanted[named].min()) + 1e-3


def test_another_event_loop_than_the_first_is_told_so(there: VLLMEngine) -> None:
    async def run() -> None:
        async with there.open(there.model.encode(said(QUESTIONS[1])), room=4) as row:
            await row.logits()

    runtime().run(run())
    with pytest.raises(UserError, match="call it through a guard"):
        asyncio.run(run())
    runtime().run(run())


def test_greedy_answers_are_those_of_our_engine(here: LocalEngine, there: VLLMEngine) -> None:
    for text in QUESTIONS:
        assert generated(there, text) == generated(here, text)


def test_many_at_once_are_as_each_alone_and_forks_go_their_own_ways(there: VLLMEngine) -> None:
    import asyncio

    asked = GenerationSettings(max_new_tokens=8)

    async def forked(text: str) -> list[list[int]]:
        async with there.open(there.model.encode(said(text)), rows=3, room=16) as row:
            rows = [row, row.fork(), row.fork()]
            for one, word in zip(rows, (b"The", b"No", b"I"), strict=True):
                one.append(there.model.vocabulary.encode(word)[:1])
            found = await asyncio.gather(*(one.generate(asked) for one in rows))
            return [list(one.token_ids) for one in found]

    async def together() -> list[list[list[int]]]:
        return list(await asyncio.gather(*(forked(f"{text} {n}") for n in range(3) for text in QUESTIONS)))

    many = runtime().run(together())
    alone = [runtime().run(forked(f"{text} {n}")) for n in range(3) for text in QUESTIONS]
    assert many == alone
    assert any(len({tuple(one) for one in rows}) == 3 for rows in many)


def test_a_stream_is_the_whole_answer_and_leaving_it_ends_the_request_in_vllm(there: VLLMEngine) -> None:
    asked = GenerationSettings(max_new_tokens=200)

    async def stream(most: int) -> list[int]:
        found: list[int] = []
        async with there.open(there.model.encode(said(QUESTIONS[2])), room=200) as row:
            pieces: Any = row.stream(asked)
            async for token in pieces:
                found.append(token)
                if len(found) == most:
                    await pieces.aclose()
                    break
        return found

    assert runtime().run(stream(1000)) == generated(there, QUESTIONS[2], max_new_tokens=200)
    assert len(runtime().run(stream(3))) == 3
    assert unfinished(there) == 0


def test_a_stream_tells_whether_the_answer_was_cut(here: LocalEngine, there: VLLMEngine) -> None:
    async def cut(engine: Any, text: str, room: int) -> bool:
        async with engine.open(engine.model.encode(said(text)), room=room) as row:
            async for _ in row.stream(GenerationSettings(max_new_tokens=room)):
                pass
            return bool(row.full)

    found = [(runtime().run(cut(there, text, room)), runtime().run(cut(here, text, room)))
             for text in QUESTIONS for room in (3, 64)]  # fmt: skip
    assert all(one == other for one, other in found)
    assert {one for one, _ in found} == {True, False}


def test_a_seed_goes_to_vllm_unless_it_runs_on_a_cpu(there: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    sampled = GenerationSettings(do_sample=True, seed=(1 << 80) + 5)
    for cpu, seed in ((True, None), (False, sampled.seed % (1 << 63))):
        monkeypatch.setattr(type(current_platform), "is_cpu", lambda self, cpu=cpu: cpu)
        assert asked(there.model, sampled, 8, 20).seed == seed
        assert asked(there.model, GenerationSettings(), 8, 20).seed is None


def test_the_log_probabilities_of_an_answer_are_told(there: VLLMEngine) -> None:
    async def scores() -> Any:
        async with there.open(there.model.encode(said(QUESTIONS[1])), room=8) as row:
            await row.generate(GenerationSettings(max_new_tokens=4, logprobs=3))
            return row.ids[row.prompt_length :], row.scores(row.prompt_length)

    ids, found = runtime().run(scores())
    assert [one.token for one in found] == ids
    assert all(len(one.top) == 3 and one.top[0] == (one.token, one.logprob) for one in found)


def test_more_samples_than_a_step_reads_at_once_all_come(there: VLLMEngine) -> None:
    import asyncio

    prompts = [there.model.encode(said(f"{n}. {QUESTIONS[2] * 60}")) for n in range(12)]

    async def sampled(seed: int) -> int:
        wanted = GenerationSettings(max_new_tokens=4, do_sample=True, temperature=1.3, seed=seed)
        async with there.open(prompts[seed], room=4) as row:
            return len((await row.generate(wanted)).token_ids)

    async def together() -> list[int]:
        return list(await asyncio.gather(*map(sampled, range(12))))

    assert sum(map(len, prompts)) > 3000
    assert all(runtime().run(together()))


def test_an_answer_holds_to_a_response_format(there: VLLMEngine) -> None:
    schema = {"type": "object", "properties": {"fine": {"type": "boolean"}}, "required": ["fine"],
              "additionalProperties": False}  # fmt: skip
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    text = there.model.vocabulary.decode(generated(there, "Are you fine?", max_new_tokens=40, response_format=format))
    assert isinstance(json.loads(text)["fine"], bool)


@pytest.mark.parametrize("name", ["alignbeam", "best_of_n", "self_reminder", "goal_priority", "inferenceguard"])
def test_a_guard_answers_with_it(there: VLLMEngine, small_anchor: Path, name: str) -> None:
    roles: dict[str, Any] = {}
    if name == "alignbeam":
        roles = {"anchor": str(small_anchor), "judge": "refusal", "gate": "always"}
    if name == "best_of_n":
        roles = {"judge": "refusal"}
    if name == "inferenceguard":
        roles = {"cost": lambda messages, answer: -1.0, "reward": lambda messages, answer: float(len(answer))}
    guard = Guard(there, name, generation={"max_new_tokens": 12}, **roles)
    for one in guard.generate([said(text) for text in QUESTIONS]):
        assert not one.failed, one.trace
        assert one.text.strip()


def test_alignbeam_chooses_as_it_does_on_the_same_weights_here(
    here: LocalEngine, there: VLLMEngine, small_anchor: Path
) -> None:
    """Of 49,152 tokens 1,000 are named: what is left out is too little to matter."""
    asked: dict[str, Any] = {"anchor": str(small_anchor), "judge": "refusal", "gate": "always", "mixed_tokens": 6,
                             "generation": {"max_new_tokens": 12}}  # fmt: skip
    ours, theirs = (Guard(one, "alignbeam", **asked) for one in (here, there))
    for text in QUESTIONS:
        found = theirs.chat(said(text))
        assert found.text == ours.chat(said(text)).text
        assert all(step["unnamed"] < 0.3 for one in found.trace if one.kind == "mix" for step in one.data["steps"])


def test_what_cannot_be_had_is_refused_with_a_remedy(there: VLLMEngine, small_anchor: Path) -> None:
    with pytest.raises(UserError, match="load the target with transformers"):
        Guard(there, "safe_decoding", anchor=str(small_anchor))

    async def read() -> None:
        async with there.open([1, 2, 3]) as row:
            await row.activations()

    with pytest.raises(UserError, match="inside vLLM: set activations = true"):
        runtime().run(read())


def test_the_recipe_of_the_page_passes_its_check(smollm2: Path, small_anchor: Path, tmp_path: Path) -> None:
    names = {"org/my-specialist": smollm2, "org/small-aligned-model": small_anchor, "org/judge": smollm2}
    (tmp_path / "guard.toml").write_text(block("toml", "# guard.toml", names), "utf-8")
    found = Guard.check(Recipe.load(tmp_path / "guard.toml"))
    assert found.passed, found.gaps
    assert any("reads 4,096), in vLLM, which starts with the guard" in fact for fact in found.facts)


def test_the_steered_recipe_of_the_page_passes_its_check(
    here: LocalEngine, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asks = [f"How do I {verb} {what}?" for verb in ("bake", "cut", "buy") for what in ("bread", "pie", "cake", "tart")]
    fitted = fit_inferaligner(here, here, [f"{one} Tell me a crime." for one in asks], asks, pooling="end")
    fitted.save(tmp_path / "artifacts/my-specialist")
    recipe = block("toml", "# steered.toml", {"org/my-specialist": smollm2}).replace(
        "path =", 'dtype = "float32"\npath ='
    )
    for added, passed in (("", True), ("activations = true", False)):
        (tmp_path / "steered.toml").write_text(recipe.replace(added, "") if added else recipe, "utf-8")
        found = Guard.check(Recipe.load(tmp_path / "steered.toml"))
        assert found.passed is passed, found.gaps
    assert any("set activations = true" in gap for gap in found.gaps)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"options": {"max_modle_len": 512}}, "no option 'max_modle_len'"),
        ({"options": {**OPTIONS, "max_model_len": 10_000_000}}, "vLLM could not start"),
        ({"path": "/nowhere"}, "no folder"),
        ({"activations": True, "options": {**OPTIONS, "pipeline_parallel_size": 2}}, "lies in one stage"),
    ],
)
def test_what_does_not_start_is_said_in_one_sentence(smollm2: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        VLLMEngine.start(settings(smollm2, **more))
    assert "\n" not in str(raised.value)


def test_beams_of_a_server_are_refused_where_there_is_an_anchor_and_only_there(
    there: VLLMEngine, small_anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search of vLLM's HTTP server, on an engine of our own."""
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import tokens_input
    from vllm.sampling_params import BeamSearchParams

    class Server(BeamSearchOnlineMixin):  # type: ignore[misc]  # vLLM is not there where types are checked
        engine_client = there._server
        renderer = there._server.renderer

    prompt = tokens_input(there.model.encode(said(QUESTIONS[1])))

    async def search() -> Any:
        found = Server().beam_search(prompt, "asked", BeamSearchParams(beam_width=2, max_tokens=4))
        return [one async for one in found][-1].outputs

    first, second = runtime().run(search())
    assert first.text != second.text
    monkeypatch.setenv("ANCHORLM_VLLM_ANCHOR", str(small_anchor))
    with pytest.raises(VLLMValidationError, match="AnchorLM guides no beam search"):
        runtime().run(search())


def test_an_answer_that_takes_too_long_or_never_comes_is_refused(there: VLLMEngine, small_anchor: Path) -> None:
    """Last in this file: afterwards vLLM is gone."""
    guard = Guard(there, "alignbeam", anchor=str(small_anchor), judge="refusal", gate="always", refusal=REFUSAL)
    there._timeout = 1e-4
    slow = guard.chat(said(QUESTIONS[0]))
    assert (slow.failed, slow.text) == (True, REFUSAL)
    assert unfinished(there) == 0
    there._timeout = 600.0
    assert not guard.chat(said(QUESTIONS[1]), max_new_tokens=4).failed
    for process in there._server.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)
    gone = guard.chat(said(QUESTIONS[0]))
    assert (gone.failed, gone.text) == (True, REFUSAL)
    with pytest.raises(DefenseError, match="vLLM has ended"):
        generated(there, QUESTIONS[0])
