"""AlignBeam at real size: Llama-3-8B guided by Qwen2.5-3B, random weights in bfloat16.

python -m benchmarks.gpu            # on a GPU
python -m benchmarks.gpu --tiny     # the same code on two-layer models, anywhere
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from anchorlm import CausalModel, Guard
from anchorlm.engine import LocalEngine
from anchorlm.judging import CallableJudge
from anchorlm.tokens import Projection
from benchmarks._floor import Recorder
from benchmarks._report import ratio, report

PROMPT = "Explain to a patient how the two drugs on this list act on each other, and what to watch for. " * 4


def _load(config: LlamaConfig | Qwen2Config, tokenizer: str, device: torch.device) -> LocalEngine:
    data = Path(os.environ.get("ANCHORLM_DATA", "../shared/data"))
    file = data / "tokenizers" / tokenizer / "tokenizer.json"
    if not file.is_file():
        raise SystemExit(f"There is no {file}: set ANCHORLM_DATA to a folder with tokenizers/{tokenizer}.")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None
    fast = PreTrainedTokenizerFast(tokenizer_file=str(file))
    return LocalEngine(CausalModel.wrap(model, fast, name=tokenizer), prefix_tokens=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="two layers, 64 wide: only to see that it runs")
    tiny = parser.parse_args().tiny
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here: run with --tiny to see that the benchmark works.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2}  # fmt: skip
    llama = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8}  # fmt: skip
    qwen = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": 8192}
    target = _load(LlamaConfig(vocab_size=128_256, **(small if tiny else llama), **ids), "llama3", device)
    anchor = _load(Qwen2Config(vocab_size=151_936, **(small if tiny else qwen), **ids), "qwen2", device)

    guard = Guard(
        target,
        "alignbeam",
        anchor=anchor,
        judge=CallableJudge(lambda messages, response: 0.0, name="none"),
        generation={"max_new_tokens": 16 if tiny else 128},
        trace_top=0,
    )
    recorders = [Recorder(engine) for engine in (target, anchor)]
    conversation = [{"role": "user", "content": PROMPT}]
    whole, floors = [], []
    for turn in range(6):
        for recorder in recorders:
            recorder.take()
        start = perf_counter()
        guard.chat(conversation)
        seconds = perf_counter() - start
        shapes = [recorder.take() for recorder in recorders]
        floor = sum(recorder.replay(forwards) for recorder, forwards in zip(recorders, shapes, strict=True))
        if turn:
            whole.append(seconds)
            floors.append(floor)
    steps = []
    for recorder, forwards in zip(recorders, shapes, strict=True):
        step = [forward for forward in forwards if all(count == 1 for _, _, count in forward.rows)][:6]
        recorder.replay(step)
        steps.append(statistics.median(recorder.replay(step) / len(step) for _ in range(10)))
    rows = [
        ["target, one step of 3 rows, ms", steps[0] * 1e3, 10],
        ["anchor, one step of 3 rows, ms", steps[1] * 1e3, 10],
        ["projection of one row, ms", _projection(target, anchor, device) * 1e3, 50],
        ["whole response, ms", statistics.median(whole) * 1e3, len(whole)],
        ["floor, ms", statistics.median(floors) * 1e3, len(floors)],
        ["response over floor", ratio(whole, floors), len(floors)],
    ]
    report("alignbeam at real size" if not tiny else "alignbeam at real size, tiny", ["what", "median", "n"], rows)


def _projection(target: LocalEngine, anchor: LocalEngine, device: torch.device) -> float:
    projection = Projection.build(
        anchor.model.vocabulary,
        target.model.vocabulary,
        anchor_size=anchor.model.vocab_size,
        target_size=target.model.vocab_size,
    )
    probs = torch.rand(1, anchor.model.vocab_size, device=device).softmax(-1)
    times = []
    for _ in range(50):
        start = perf_counter()
        projection(probs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
