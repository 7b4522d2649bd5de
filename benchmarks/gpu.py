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
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from anchorlm import CausalModel, Guard
from anchorlm.engine import LocalEngine
from anchorlm.judging import CallableJudge
from anchorlm.tokens import Projection
from benchmarks._floor import Recorder
from benchmarks._report import ratio, report

PROMPT = "Explain to a patient how the two drugs on this list act on each other, and what to watch for. " * 4


def shapes(tiny: bool) -> tuple[LlamaConfig, Qwen2Config]:
    """The configurations of target and anchor, which never end an answer."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1}  # fmt: skip
    llama = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8}  # fmt: skip
    qwen = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": 8192}
    return (
        LlamaConfig(vocab_size=128_256, **(small if tiny else llama), **ids),
        Qwen2Config(vocab_size=151_936, **(small if tiny else qwen), **ids),
    )


def random_model(config: LlamaConfig | Qwen2Config, device: torch.device) -> Any:
    """Random weights, in bfloat16 on a GPU."""
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=precision(device))
    model.generation_config.eos_token_id = None
    return model


def precision(device: torch.device) -> torch.dtype:
    """In which numbers models are measured."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def real_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a real family."""
    data = Path(os.environ.get("ANCHORLM_DATA", "../shared/data"))
    file = data / "tokenizers" / name / "tokenizer.json"
    if not file.is_file():
        raise SystemExit(f"There is no {file}: set ANCHORLM_DATA to a folder with tokenizers/{name}.")
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **options)


def chosen_device(tiny: bool) -> torch.device:
    """A GPU, which must be there if the models are not tiny."""
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here: run with --tiny to see that the benchmark works.")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="two layers, 64 wide: only to see that it runs")
    tiny = parser.parse_args().tiny
    device = chosen_device(tiny)
    target, anchor = (
        LocalEngine(CausalModel.wrap(random_model(config, device), real_tokenizer(name), name=name), prefix_tokens=0)
        for config, name in zip(shapes(tiny), ("llama3", "qwen2"), strict=True)
    )

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
        taken = [recorder.take() for recorder in recorders]
        floor = sum(recorder.replay(forwards) for recorder, forwards in zip(recorders, taken, strict=True))
        if turn:
            whole.append(seconds)
            floors.append(floor)
    steps = []
    for recorder, forwards in zip(recorders, taken, strict=True):
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
