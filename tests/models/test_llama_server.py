"""A running llama-server (package xllamacpp) as target and anchor, against the same float32 weights here."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

gguf = pytest.importorskip("gguf", reason="pip install 'anchorlm[gguf]'")
xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama-server")

from callers import HERMES, TOOLS  # noqa: E402
from endpoints import readable  # noqa: E402
from factories import tiny_model  # noqa: E402
from models import test_gguf  # noqa: E402

from anchorlm.cli._app import app  # noqa: E402
from anchorlm.engine import EndpointEngine, LocalEngine, runtime  # noqa: E402
from anchorlm.guard import Guard  # noqa: E402
from anchorlm.judging import CallableJudge  # noqa: E402
from anchorlm.models import BASES, CausalModel, EndpointSettings  # noqa: E402
from anchorlm.records import Access, DefenseError, GenerationSettings, Response, TextDelta, UserError  # noqa: E402

pytestmark = pytest.mark.slow

LENIENT = CallableJudge(lambda messages, response: 0.0, name="lenient")
PROMPTS = ["How do I bake bread?", "Ünïcode, 12 + 30 = ?", "The lazy dog", "x", "fox", "What is 42?"]
EVERY = 320


class Running:
    """A server on a GGUF file, in this process, on one thread: its threads spin where cores are busy."""

    def __init__(self, file: Path, context: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path, params.model_alias = str(file), {"tiny"}
        params.n_ctx, params.n_parallel, params.warmup = context, 1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)
        self.url = f"{self._server.listening_address}/v1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # Bytes that are no character do not survive as text: this one writes letters.
        patch.setattr(test_gguf, "tiny_weights", lambda kind: readable(tiny_model(kind)).model)
        return Path(test_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf"))


@pytest.fixture(scope="module")
def start_live(file: Path) -> Running:
    return Running(file, 256)


@pytest.fixture(scope="module")
def model(file: Path) -> CausalModel:
    return CausalModel.from_pretrained(file)


@pytest.fixture(scope="module")
def source(start_live: Running, file: Path) -> Callable[..., dict[str, Any]]:
    return lambda **more: {"endpoint": start_live.url, "tokenizer": str(file), **more}


def answers(target: Any, anchor: Any, **knobs: Any) -> list[Response]:
    options = {"judge": LENIENT, "generation": {"max_new_tokens": 10}, **knobs}
    return Guard(target, "alignbeam", anchor=anchor, **options).generate(PROMPTS)


def test_the_server_is_known_for_what_it_is(source: Callable[..., dict[str, Any]]) -> None:
    engine = EndpointEngine.start(EndpointSettings.parse(source(top_logprobs=EVERY), where="a test"))
    found = engine.found
    assert (found.kind, found.mode, found.extended, found.context) == ("llama-server", "tokens", True, 256)
    assert found.top > 100
    assert engine.access == Access.LOGPROBS


def test_a_tokenizer_with_the_same_tokens_and_other_merges_is_told(
    source: Callable[..., dict[str, Any]], model: CausalModel, tmp_path: Path
) -> None:
    model.tokenizer.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    data["model"]["merges"] = data["model"]["merges"][::2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    with pytest.raises(UserError, match="is not the tokenizer of .*it splits"):
        Guard(source(tokenizer=str(tmp_path)))


def test_greedy_text_and_stream_are_those_of_the_same_weights_here(
    source: Callable[..., dict[str, Any]], model: CausalModel
) -> None:
    far = Guard(source(), generation={"max_new_tokens": 12})
    here = Guard(LocalEngine(model), generation={"max_new_tokens": 12})
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        assert far.chat(turns).text == here.chat(turns).text
        pieces = [event.text for event in far.stream(turns) if hasattr(event, "text")]
        assert "".join(pieces) == here.chat(turns).text


def test_likely_tokens_are_named_where_almost_every_token_ends_inside_a_character(tmp_path: Path) -> None:
    model = tiny_model("llama")
    half = [model.vocabulary.encode("é".encode())[0], *model.vocabulary.encode("😀".encode())[:1]]
    with torch.no_grad():
        head = model.model.get_output_embeddings().weight
        head[[token for token in range(len(head)) if token not in half]] *= 0.01
        head[half] = 2 * torch.randn(len(half), head.shape[1], generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_gguf, "tiny_weights", lambda kind: model.model)
        file = Path(test_gguf.write(tmp_path / "halves.gguf"))
    server = Running(file, 128)
    source = {"endpoint": server.url, "tokenizer": str(file), "top_logprobs": EVERY}
    far = EndpointEngine.start(EndpointSettings.parse(source, where="a test"))
    here = LocalEngine(CausalModel.from_pretrained(file))

    async def look(engine: Any, prompt: str) -> torch.Tensor:
        async with engine.open(engine.model.encode([{"role": "user", "content": prompt}]), room=1) as row:
            found: torch.Tensor = (await row.logits()).log_softmax(-1)
            return found

    hidden = 0
    for prompt in PROMPTS:
        named, exact = (runtime().run(look(engine, prompt)) for engine in (far, here))
        known = named.isfinite()
        assert int(known.sum()) > 100
        # Its cache is in float16.
        torch.testing.assert_close(named[known], exact[known], atol=2e-2, rtol=1e-2)
        hidden += float(exact[half].exp().sum()) > 0.5
    assert hidden


def test_alignbeam_chooses_what_it_chooses_with_the_same_weights_here(
    source: Callable[..., dict[str, Any]], model: CausalModel
) -> None:
    anchor = LocalEngine(tiny_model("qwen2", seed=1))
    here = answers(LocalEngine(model), anchor)
    assert [one.text for one in answers(source(top_logprobs=EVERY), anchor)] == [one.text for one in here]
    assert not any(one.failed for one in here)


def test_the_server_as_an_anchor_is_the_anchor_here(source: Callable[..., dict[str, Any]], model: CausalModel) -> None:
    target = LocalEngine(tiny_model("qwen2", seed=1))
    here = answers(target, LocalEngine(model))
    assert [one.text for one in answers(target, source(top_logprobs=EVERY))] == [one.text for one in here]


def test_a_conversation_that_the_server_writes_is_continued(start_live: Running) -> None:
    engine = EndpointEngine.start(EndpointSettings.parse({"endpoint": start_live.url}, where="a test"))
    assert engine.found.continues == "yes"

    async def write_in_two() -> tuple[str, str]:
        turns = [{"role": "user", "content": "fox"}]
        async with engine.open(engine.model.encode(turns), room=8) as row:
            whole = (await row.fork().generate(GenerationSettings(max_new_tokens=8))).text
            first = (await row.generate(GenerationSettings(max_new_tokens=4))).text
            return whole, first + (await row.generate(GenerationSettings(max_new_tokens=4))).text

    whole, parts = runtime().run(write_in_two())
    assert whole == parts


LOAF = {"type": "object", "properties": {"kind": {"enum": ["rye", "white"]}, "grams": {"type": "integer", "minimum": 0,
        "maximum": 99}}, "required": ["kind", "grams"], "additionalProperties": False}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "loaf", "schema": LOAF}}


@pytest.mark.parametrize(("defense", "options"), [("undefended", {}), ("best_of_n", {"judge": LENIENT, "n": 2})])
def test_it_holds_an_answer_to_a_response_format(
    source: Callable[..., dict[str, Any]], defense: str, options: dict[str, Any]
) -> None:
    far = Guard(source(), defense, generation={"max_new_tokens": 60}, on_error="raise", **options)
    whole = far.chat(PROMPTS[0], response_format=FORMAT)
    pieces = [one.text for one in far.stream(PROMPTS[0], response_format=FORMAT) if isinstance(one, TextDelta)]
    for text in (whole.text, "".join(pieces)):
        found = json.loads(text)
        assert (list(found), found["kind"] in ("rye", "white")) == (["kind", "grams"], True)
        assert found["grams"] in range(100)
    assert whole.finish_reason == "stop"
    assert isinstance(json.loads(far.chat(PROMPTS[0], response_format={"type": "json_object"}).text), dict)


def test_where_the_server_writes_the_prompt_a_format_is_held_and_may_be_cut(start_live: Running) -> None:
    far = Guard({"endpoint": start_live.url}, generation={"max_new_tokens": 60}, on_error="raise")
    whole = far.chat(PROMPTS[0], response_format=FORMAT)
    assert json.loads(whole.text)["kind"] in ("rye", "white")
    cut = far.chat(PROMPTS[0], response_format=FORMAT, max_new_tokens=whole.usage.completion_tokens // 2)
    assert (cut.finish_reason, whole.text.startswith(cut.text)) == ("length", True)


def test_what_it_cannot_hold_is_one_sentence(source: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    mixed = Guard(source(), "alignbeam", anchor=source(), judge=LENIENT)
    with pytest.raises(UserError, match="only where the target is loaded here: leave response_format out"):
        mixed.chat(PROMPTS[0], response_format=FORMAT)
    (tmp_path / "tools.jinja").write_text(HERMES, "utf-8")
    far = Guard(source(chat_template=str(tmp_path / "tools.jinja")))
    with pytest.raises(UserError, match="can only be auto or none here, because .* ask for the call in your message"):
        far.chat(PROMPTS[0], tools=TOOLS, tool_choice="required")


def test_a_prompt_that_is_too_long_is_told(source: Callable[..., dict[str, Any]]) -> None:
    guard = Guard(source(), generation={"max_new_tokens": 4}, on_error="raise")
    with pytest.raises((UserError, DefenseError), match="shorten it"):
        guard.chat([{"role": "user", "content": "fox " * 300}])


OWN_PROCESS = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"tiny"}
params.port, params.n_ctx, params.n_parallel, params.warmup = int(sys.argv[2]), 256, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(600)
"""


@contextmanager
def in_its_own_process(file: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A server that can be killed."""
    command = [sys.executable, "-c", OWN_PROCESS, str(file), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert any(line.strip().endswith(f":{port}") for line in process.stdout), "it did not start"
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def generated(recipe: Path, prompts: Path, out: Path) -> Result:
    options = ["--no-probe", "--concurrency", "1"]
    return CliRunner().invoke(app, ["generate", *options, str(prompts), "-r", str(recipe), "-o", str(out)])


def test_generate_goes_on_when_its_server_was_killed_and_started_again(file: Path, tmp_path: Path) -> None:
    model, port = tiny_model("qwen2", seed=1), free_port()
    model.model.save_pretrained(tmp_path / "anchor")
    model.tokenizer.save_pretrained(tmp_path / "anchor")
    recipe, prompts, out = tmp_path / "recipe.toml", tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    recipe.write_text(
        f'anchor = "{tmp_path / "anchor"}"\n[target]\nendpoint = "http://127.0.0.1:{port}/v1"\n'
        f'tokenizer = "{file}"\nretries = 1\n[judge]\nkind = "refusal"\n[defense]\nname = "alignbeam"\n'
        "mixed_tokens = 2\ncandidates = 2\nmax_harm = 1.0\nrefusal = 'No.'\n[generation]\nmax_new_tokens = 6\n"
    )
    prompts.write_text("".join(f"The fox {number}\n" for number in range(12)))

    def kill_half_way(process: subprocess.Popen[str]) -> None:
        while not out.exists() or out.read_text().count("\n") < 4:
            time.sleep(0.005)
        process.kill()

    with in_its_own_process(file, port) as process:
        Thread(target=kill_half_way, args=(process,), daemon=True).start()
        cut = generated(recipe, prompts, out)
    assert cut.exit_code == 1
    assert "rows were refused because a model or the judge failed" in cut.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["index"] for row in rows) == list(range(12))
    kept = {row["index"]: row["response"] for row in rows if not row.get("failed")}
    assert 4 <= len(kept) < 12
    assert {row["response"] for row in rows if row.get("failed")} == {"No."}

    with in_its_own_process(file, port):
        after = generated(recipe, prompts, out)
        whole = generated(recipe, prompts, tmp_path / "whole.jsonl")
    assert (after.exit_code, whole.exit_code) == (0, 0)
    assert f"{12 - len(kept)} rows written" in after.stderr

    def answered(place: Path) -> dict[int, str]:
        lines = [json.loads(line) for line in place.read_text().splitlines()]
        assert len(lines) == 12
        return {line["index"]: line["response"] for line in lines}

    assert answered(out) == answered(tmp_path / "whole.jsonl")
    assert kept.items() <= answered(out).items()


def test_a_real_model_is_guarded_and_refuses_nothing_harmless() -> None:
    base = BASES["real-smollm2"]
    if not base.present:
        pytest.skip(base.install)
    running = Running(base.path(), 512)
    source = {"endpoint": running.url, "tokenizer": "real-smollm2"}
    far = Guard(source, "alignbeam", anchor=source, judge=LENIENT, generation={"max_new_tokens": 8},
                candidates=1, mixed_tokens=2)  # fmt: skip
    response = far.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert not response.failed
    assert response.text.strip()
