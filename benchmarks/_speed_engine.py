"""Rows about the engine alone."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch

from anchorlm.engine import LocalEngine, Sampler, choose, runtime
from anchorlm.models import CausalModel, prepack
from anchorlm.records import GenerationSettings
from anchorlm.team import EngineSettings
from benchmarks._speed import Figure, Measure, Row
from benchmarks.engine import LENGTHS, with_engine, with_generate
from tools.zoo_real import bases

REAL = "real-smollm2"
NEW = 32
WORDS = (
    "bread", "river", "candle", "engine", "garden", "winter", "market", "letter",
    "bridge", "teacher", "island", "copper", "window", "basket", "planet", "harbor",
)  # fmt: skip

_fresh = count()


@cache
def model(dtype: str = "float32") -> CausalModel:
    return CausalModel.from_pretrained(REAL, dtype=dtype)


@cache
def served(dtype: str = "float32") -> CausalModel:
    """The model as a guard loads it."""
    loaded = CausalModel.from_pretrained(REAL, dtype=dtype)
    prepack(loaded.model)
    return loaded


def prompts(lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(100, 40_000, (length,), generator=generator).tolist() for length in lengths]


def words(number: int) -> str:
    """So many words in an order that nobody has seen before."""
    rng = Random(next(_fresh))
    return " ".join(rng.choice(WORDS) for _ in range(number))


def decode(rows: int, measure: Measure, dtype: str = "float32") -> Figure:
    engine, asked = LocalEngine(served(dtype), prefix_tokens=0), prompts(LENGTHS[-rows:] if rows > 1 else LENGTHS[3:4])
    texts: dict[str, list[list[int]]] = {}

    def theirs() -> None:
        texts["generate"] = with_generate(model(dtype), asked, NEW)

    def ours() -> None:
        texts["engine"] = with_engine(engine, asked, NEW)

    ratios = measure.ratios(theirs, ours)
    same = sum(a == b for a, b in zip(texts["generate"], texts["engine"], strict=True))
    return Figure(ratios, f"{same} of {rows} texts equal")


_BUILD = """
import asyncio, json, sys
from anchorlm.engine import runtime
from anchorlm.records import GenerationSettings
from anchorlm.team import EngineSettings, start_engine
import time, torch
if int(sys.argv[3]): torch.set_num_threads(int(sys.argv[3]))
clock = time.perf_counter if sys.argv[4] == "wall" else time.process_time
engine = start_engine({"path": sys.argv[1], "dtype": "float32"}, EngineSettings(), [])
new = int(sys.argv[2])
async def one(prompt):
    async with engine.open(prompt, room=new) as sequence:
        return list((await sequence.generate(GenerationSettings(max_new_tokens=new))).token_ids)
async def together(asked):
    return await asyncio.gather(*map(one, asked))
print("ready", flush=True)
for line in sys.stdin:
    start = clock()
    texts = runtime().run(together(json.loads(line)))
    print(json.dumps([clock() - start, texts]), flush=True)
"""


class Build:
    """A build of this library in a process of its own, that answers prompts."""

    def __init__(self, checkout: Path, measure: Measure) -> None:
        command = [sys.executable, "-c", _BUILD, REAL, str(NEW), str(torch.get_num_threads()), measure.clock_name]
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise OSError("the other build ended: run it by itself to see why")
        return line

    def answer(self, asked: list[list[int]]) -> tuple[float, list[list[int]]]:
        """Its seconds, by its own clock, and the texts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        seconds, texts = json.loads(self._read())
        return seconds, texts

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def over_build(asked_of: Any, measure: Measure) -> Figure:
    """Time of the other build over that of this one. Each runs in a process of its own, and waits for the other."""
    if measure.against is None:
        raise OSError("give a checkout of the other build with --against")
    old, new = Build(measure.against, measure), Build(Path(__file__).resolve().parents[1], measure)
    ratios, same, of = [], 0, 0
    try:
        for turn in range(measure.runs + 1):
            asked = asked_of()
            (over, theirs), (under, ours) = old.answer(asked), new.answer(asked)
            if turn:
                ratios.append(over / under)
                same += sum(a == b for a, b in zip(theirs, ours, strict=True))
                of += len(asked)
    finally:
        old.close()
        new.close()
    return Figure(ratios, f"{same} of {of} texts equal")


def mixed() -> list[list[int]]:
    """Sixteen prompts that nobody has read."""
    return prompts(LENGTHS, seed=1000 + next(_fresh))


def clients() -> list[list[int]]:
    """What 64 clients ask behind one system prompt of 500 tokens, a new one each time."""
    (system,) = prompts([500], seed=5000 + next(_fresh))
    return [[*system, *own] for own in prompts([20] * 64, seed=9000 + next(_fresh))]


def second_turn(measure: Measure) -> Figure:
    engines = [LocalEngine(served(), prefix_tokens=size) for size in (8192, 0)]
    texts: list[list[int]] = [[], []]

    async def turn(which: int, ids: list[int], new: int) -> list[int]:
        async with engines[which].open(ids, room=new) as row:
            return list((await row.generate(GenerationSettings(max_new_tokens=new))).token_ids)

    ratios, longest = [], []
    for number in range(measure.runs + 1):
        talk: list[dict[str, str]] = [{"role": "user", "content": words(1000)}]
        prompt = model().encode(talk)
        answer = runtime().run(turn(0, prompt, 16))
        talk += [{"role": "assistant", "content": model().vocabulary.decode(answer).decode("utf-8", "replace")}]
        talk += [{"role": "user", "content": "And what follows from that?"}]
        following, times = model().encode(talk), []
        for which in (0, 1):
            start = measure.clock()
            texts[which] = runtime().run(turn(which, following, 1))
            times.append(measure.clock() - start)
        if number:
            ratios.append(times[0] / times[1])
            longest.append(len(prompt))
    return Figure(
        ratios, f"{min(longest)} to {max(longest)} tokens before it, first token equal: {texts[0] == texts[1]}"
    )


def shared_system(measure: Measure) -> Figure:
    """Throughput with what was read once, over a build that reads it for each client (`prefix_tokens = 0`)."""
    engines = [LocalEngine(served(), prefix_tokens=size) for size in (8192, 0)]
    texts: dict[int, list[list[int]]] = {}
    state: list[list[list[int]]] = []

    def without() -> None:
        state[:] = [clients()]
        texts[1] = with_engine(engines[1], state[0], NEW)

    def once() -> None:
        texts[0] = with_engine(engines[0], state[0], NEW)

    ratios = measure.ratios(without, once)
    same = sum(a == b for a, b in zip(texts[0], texts[1], strict=True))
    return Figure(ratios, f"{same} of 64 texts equal; a new system prompt each run")


def sampling(measure: Measure) -> Figure:
    """One draw with top_k = 50, over one whose vocabulary is put in order."""
    logits = torch.randn(16, 262_144, generator=torch.Generator().manual_seed(0)) * 3
    how = GenerationSettings(do_sample=True, top_k=50)

    def draws() -> None:
        choose(logits, [Sampler(how)] * 16, [[0]] * 16)

    def ordered() -> None:
        logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        draws()

    return Figure(measure.ratios(draws, ordered))


_MEMORY = """
import asyncio, json, sys, torch
from anchorlm.engine import runtime
from anchorlm.models._prepacked import PrepackedLinear
from anchorlm.records import GenerationSettings
from anchorlm.team import EngineSettings, start_engine
engine = start_engine({"path": sys.argv[1], "dtype": "float32"}, EngineSettings(prefix_tokens=int(sys.argv[2])), [])
model = engine.model
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
def now():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
layers = [each for each in model.model.modules() if isinstance(each, PrepackedLinear)]
held = 4 * sum(each.numel() for each in [*model.model.parameters(), *(layer.weight for layer in layers)])
weights = held - 4 * sum(layer.weight.numel() for layer in layers if layer.tied)
before = now()
open("/proc/self/clear_refs", "w").write("5")
async def one(n):
    prompt = torch.randint(100, 40000, (192,), generator=torch.Generator().manual_seed(n)).tolist()
    async with engine.open(prompt, room=64) as row:
        await row.generate(GenerationSettings(max_new_tokens=64))
async def together():
    await asyncio.gather(*map(one, range(64)))
runtime().run(together())
config = model.text_config
size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
states = 64 * 256 * config.num_hidden_layers * 2 * config.num_key_value_heads * size * 4
print(json.dumps([held, weights, states, peak() - before]))
"""


def memory(measure: Measure) -> Figure:
    """Peak of 64 rows of 256 tokens over weights, keys and values. What Python and torch hold anyway is left out."""
    ratios: dict[int, list[float]] = {0: [], EngineSettings().prefix_tokens: []}
    for _ in range(measure.runs):
        for kept, found in ratios.items():
            command = [sys.executable, "-c", _MEMORY, REAL, str(kept)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            held, weights, states, grown = json.loads(said.strip().splitlines()[-1])
            found.append((held + grown) / (weights + states))
    alone, by_default = ratios.values()
    return Figure(
        alone, f"one run is one process; {statistics.median(by_default):.2f} with what is kept for other rows"
    )


def questions(rows: int) -> list[list[int]]:
    asked = [f"Explain in one sentence what the word {word} means." for word in WORDS[:rows]]
    return [model().encode([{"role": "user", "content": text}]) for text in asked]


def small(dtype: str, rows: int, measure: Measure) -> Figure:
    """Smaller weights over float32, and what that changes of greedy text."""
    engines = {each: LocalEngine(served(each), prefix_tokens=0) for each in ("float32", dtype)}
    asked = questions(rows)
    texts: dict[str, list[list[int]]] = {}

    def write(dtype: str) -> None:
        texts[dtype] = with_engine(engines[dtype], asked, NEW)

    ratios = measure.ratios(lambda: write("float32"), lambda: write(dtype))
    same = sum(a == b for a, b in zip(texts["float32"], texts[dtype], strict=True))
    return Figure(ratios, f"{same} of {rows} greedy texts of up to {NEW} tokens equal")


def over_llama(rows: int, measure: Measure) -> Figure:
    """Tokens a second with int4 weights over those of llama-server with the same file, whose weights have 4 bits."""
    server = Llama(rows)
    engine, asked = LocalEngine(served("int4"), prefix_tokens=0), questions(rows)
    tokens = {"ours": 0, "theirs": 0}

    def ours() -> None:
        tokens["ours"] = sum(map(len, with_engine(engine, asked, NEW)))

    def theirs() -> None:
        tokens["theirs"] = server.answer(asked)

    ratios = measure.ratios(theirs, ours)  # seconds
    return Figure([ratio * tokens["ours"] / tokens["theirs"] for ratio in ratios], f"{tokens} tokens a run")


class Llama:
    """llama-server on the file of the real model."""

    def __init__(self, rows: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(bases.BASES["smollm2"].path())
        params.n_ctx, params.n_parallel, params.warmup = 512 * rows, rows, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        self._server = xllamacpp.Server(params)

    def answer(self, asked: list[list[int]]) -> int:
        """How many tokens it wrote."""
        with ThreadPoolExecutor(len(asked)) as pool:
            return sum(pool.map(self._one, asked))

    def _one(self, ids: list[int]) -> int:
        body = {
            "prompt": ids,
            "n_predict": NEW,
            "cache_prompt": False,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
        }
        request = urllib.request.Request(
            self._server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return int(json.load(answer)["tokens_predicted"])


ROWS = (
    Row("decode-1", "generate() over the engine, 1 prompt, float32", 1.3, False, partial(decode, 1)),
    Row("decode-16", "generate() over the engine, 16 prompts of mixed lengths, float32", 1.8, False,
        partial(decode, 16)),
    Row("decode-bfloat16-1", "the same in bfloat16, 1 prompt", 1.3, False, partial(decode, 1, dtype="bfloat16")),
    Row("build", "another build over this one, 16 prompts of mixed lengths", 1.3, False, partial(over_build, mixed)),
    Row("second-turn", "first token behind 1,000 tokens of a conversation, over reading all", 0.2, True, second_turn),
    Row("clients-64", "64 clients with one system prompt of 500 tokens, throughput over reading it each time", 1.5,
        False, shared_system),
    Row("clients-64-build", "the same, throughput over another build", 1.5, False, partial(over_build, clients)),
    Row("sampling", "a draw of 16 rows with top_k from 262,144 entries, over the same and a sort", 0.5, True, sampling),
    Row("memory-64", "peak of 64 rows of 256 tokens over weights, keys and values", 1.25, True, memory),
    Row("int8-1", "float32 over int8, 1 prompt", 1.3, False, partial(small, "int8", 1)),
    Row("int8-16", "float32 over int8, 16 prompts", 1.0, False, partial(small, "int8", 16)),
    Row("int4-1", "float32 over int4, 1 prompt", 1.5, False, partial(small, "int4", 1)),
    Row("int4-16", "float32 over int4, 16 prompts", 1.0, False, partial(small, "int4", 16)),
    Row("llama-1", "tokens a second over llama-server on the same file, int4 here, 1 prompt", 0.5, False,
        partial(over_llama, 1)),
    Row("llama-16", "the same, 16 prompts", 1.0, False, partial(over_llama, 16)),
)  # fmt: skip
