"""What the plug-in costs vLLM at real size: Llama-3-8B guided by Qwen2.5-3B, random weights in bfloat16.

python -m benchmarks.vllm_gpu            # on a GPU, where `pip install 'anchorlm[vllm]'` was run
python -m benchmarks.vllm_gpu --tiny     # the same code on two-layer models, anywhere

One vLLM answers the same prompts in three ways, which take turns:

- stock: with the plug-in taken out of its steps
- alpha 0: every request asks for alpha = 0
- guided: every request asks for the anchor
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from anchorlm.defenses.alignbeam import MixtureSettings
from benchmarks._report import FOLDER, report
from benchmarks.gpu import chosen_device, precision, random_model, real_tokenizer, shapes
from benchmarks.vllm_plugin import COLUMNS, prompts, table, taken_out

ENDS = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}
TEMPLATE = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant: "
RATIOS = (("alpha 0", "stock"), ("guided", "stock"))


def checkpoints(tiny: bool, device: torch.device) -> list[Path]:
    """The folders of target and anchor; what is there is not written again."""
    folders = []
    for config, (name, end) in zip(shapes(tiny), ENDS.items(), strict=True):
        folder = FOLDER / f"vllm-{name}{'-tiny' if tiny else ''}"
        if not (folder / "tokenizer.json").is_file():  # which is written last
            random_model(config, device).save_pretrained(folder)
            real_tokenizer(name, eos_token=end, chat_template=TEMPLATE).save_pretrained(folder)
        folders.append(folder)
    gc.collect()  # vLLM wants the room
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return folders


def server(target: Path, anchor: Path, args: argparse.Namespace, device: torch.device) -> Any:
    """A vLLM in this process, with the anchor."""
    os.environ |= {
        "ANCHORLM_VLLM_ANCHOR": str(anchor),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    from vllm import LLM

    return LLM(str(target), dtype=str(precision(device)).removeprefix("torch."), max_model_len=1024,
               max_num_seqs=max(args.batches), gpu_memory_utilization=args.memory, enforce_eager=args.tiny,
               enable_prefix_caching=False, disable_log_stats=True)  # fmt: skip


def ways(llm: Any, batch: int, args: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Each way to answer so many prompts at once; gives the number of tokens."""
    from vllm import SamplingParams

    messages = [[{"role": "user", "content": text}] for text in prompts(batch)]

    def way(extra: dict[str, Any] | None) -> Callable[[], int]:
        params = SamplingParams(temperature=0.0, max_tokens=args.new, ignore_eos=True, extra_args=extra)

        def run() -> int:
            with taken_out(llm, extra is None):
                found = llm.chat(messages, params, use_tqdm=False)
            if extra and any(one.outputs[0].text.startswith(MixtureSettings().refusal) for one in found):
                raise SystemExit("The anchor could not guide, so there is nothing to measure: see what vLLM printed.")
            return sum(len(one.outputs[0].token_ids) for one in found)

        return run

    return {
        "stock": way(None),
        "alpha 0": way({"anchorlm": {"alpha": 0}}),
        "guided": way({"anchorlm": {"alpha": 0.5, "mixed_tokens": 6}}),
    }


def measured(runs: dict[str, Callable[[], int]], repeats: int) -> list[list[Any]]:
    """The rows about one size of batch."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, int] = {}
    for turn in range(repeats + 1):  # one to warm up
        for name in runs if turn % 2 else reversed(runs):
            start = perf_counter()
            tokens[name] = runs[name]()
            if turn:
                speeds[name].append(tokens[name] / (perf_counter() - start))
    return table(speeds, tokens, RATIOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="two layers, 64 wide: only to see that it runs")
    parser.add_argument("--batches", type=int, nargs="+", help="how many prompts at once (1 32 256; tiny: 1 4 8)")
    parser.add_argument("--new", type=int, help="tokens of an answer (128; tiny: 16)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=float, help="vLLM's share of the GPU's memory (0.6); the anchor has the rest")
    args = parser.parse_args()
    device = chosen_device(args.tiny)
    args.batches = args.batches or ([1, 4, 8] if args.tiny else [1, 32, 256])
    args.new = args.new or (16 if args.tiny else 128)
    args.memory = args.memory or (0.15 if args.tiny else 0.6)
    answers, sys.stdout = sys.stdout, sys.stderr  # vLLM prints what it does
    target, anchor = checkpoints(args.tiny, device)
    llm = server(target, anchor, args, device)
    rows = [
        [f"{name}, {batch} at once", *rest]
        for batch in args.batches
        for name, *rest in measured(ways(llm, batch, args), args.repeats)
    ]
    sys.stdout = answers
    report("vllm plugin at real size, tiny" if args.tiny else "vllm plugin at real size", COLUMNS, rows)


if __name__ == "__main__":
    main()
