"""AlignBeam through vLLM with our plug-in over AlignBeam in our own engine, and what an idle plug-in costs vLLM.

.venv-vllm/bin/python -m benchmarks.vllm_plugin --target build/vllm/smollm2 --anchor src/anchorlm/zoo/members/b-chat

Both engines get the same prompts, all at once, with greedy decoding in float32, one candidate and no judge: what is
compared is mixing and continuing. Each engine runs in a process of its own; they take turns.

- ours: the guard with our own engine
- vllm: vLLM, where every request asks for the anchor
- alpha 0: vLLM, where every request asks for alpha = 0
- stock: the same vLLM process with the plug-in taken out of its steps
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from benchmarks._report import report

WAYS = {"ours": "ours", "vllm": "vllm", "alpha 0": "vllm", "stock": "vllm"}
"""What is measured, and by which of the two processes."""


def prompts(count: int) -> list[str]:
    """Prompts of the library's own, of each kind in turn."""
    from anchorlm.evaluation import own_prompts

    sets = [own_prompts(name, None) for name in ("plain", "look-alike", "harmful")]
    turns = [str(case.messages[-1]["content"]) for group in zip(*sets, strict=False) for case in group]
    return [turns[n % len(turns)] for n in range(count)]


def ours(args: argparse.Namespace) -> Callable[[str], list[int]]:
    """Answers all prompts with our own engine; gives the number of tokens of each answer."""
    from anchorlm.guard import Guard
    from anchorlm.judging import CallableJudge
    from anchorlm.models import CausalModel

    target, anchor = (CausalModel.from_pretrained(path, dtype="float32") for path in (args.target, args.anchor))
    judge = CallableJudge(lambda messages, response: 0.0, name="none")
    guard = Guard(
        target,
        "alignbeam",
        anchor=anchor,
        judge=judge,
        generation={"max_new_tokens": args.new},
        gate="always",
        candidates=1,
        alpha=args.alpha,
        mixed_tokens=args.mixed,
        trace_top=0,
    )
    texts = prompts(args.requests)

    def run(_: str) -> list[int]:
        found = guard.generate([[{"role": "user", "content": text}] for text in texts])
        return [one.usage.completion_tokens for one in found]

    return run


def vllm(args: argparse.Namespace) -> Callable[[str], list[int]]:
    """Answers all prompts with vLLM in this process."""
    os.environ |= {
        "ANCHORLM_VLLM_ANCHOR": args.anchor,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    from vllm import LLM, SamplingParams

    llm = LLM(args.target, dtype="float32", max_model_len=1024, gpu_memory_utilization=0.15, max_num_seqs=args.requests,
              enforce_eager=args.eager, enable_prefix_caching=False, disable_log_stats=True)  # fmt: skip
    messages = [[{"role": "user", "content": text}] for text in prompts(args.requests)]
    extra: dict[str, Any] = {
        "vllm": {"anchorlm": {"alpha": args.alpha, "mixed_tokens": args.mixed}},
        "alpha 0": {"anchorlm": {"alpha": 0}},
        "stock": None,
    }

    def run(way: str) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=args.new, extra_args=extra[way])
        with taken_out(llm, way == "stock"):
            return [len(one.outputs[0].token_ids) for one in llm.chat(messages, params, use_tqdm=False)]

    return run


@contextmanager
def taken_out(llm: Any, wanted: bool) -> Iterator[None]:
    """The server without our processors, where that is wanted."""
    from anchorlm.vllm.processor import AnchorProcessor

    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    batch = getattr(runner, "input_batch", None)
    if batch is None:  # the newer runner
        batch, place, name = SimpleNamespace(), runner.sampler, "logits_processors"
    else:
        place, name = batch.logitsprocs, "non_argmax_invariant"
    processors, told = getattr(place, name), getattr(batch, "logitsprocs_need_output_token_ids", False)
    if wanted:
        setattr(place, name, [one for one in processors if not isinstance(one, AnchorProcessor)])
        batch.logitsprocs_need_output_token_ids = False
    try:
        yield
    finally:
        setattr(place, name, processors)
        batch.logitsprocs_need_output_token_ids = told


def work(args: argparse.Namespace) -> None:
    """One of the two processes: for each line, one run; and a line about it."""
    answers, sys.stdout = sys.stdout, sys.stderr
    run = {"ours": ours, "vllm": vllm}[args.only](args)
    for line in sys.stdin:
        start = perf_counter()
        counts = run(line.strip())
        print(json.dumps({"seconds": perf_counter() - start, "tokens": counts}), file=answers, flush=True)


class Worker:
    """One of the two processes, from outside."""

    def __init__(self, only: str) -> None:
        command = [sys.executable, "-m", "benchmarks.vllm_plugin", *sys.argv[1:], "--only", only]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, way: str) -> dict[str, Any]:
        """Seconds and tokens of one run."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit("A process of this benchmark has no pipes.")
        self._process.stdin.write(f"{way}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The process that measures {way!r} ended: see what it printed.")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="build/vllm/smollm2", help="folder of the target")
    parser.add_argument("--anchor", default="src/anchorlm/zoo/members/b-chat", help="folder of the anchor")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--mixed", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--only", choices=["ours", "vllm"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        work(args)
        return
    workers = {name: Worker(name) for name in ("ours", "vllm")}
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens: dict[str, int] = {}
    for turn in range(args.repeats + 1):  # one to warm up
        for way in WAYS if turn % 2 else reversed(WAYS):
            found = workers[WAYS[way]].run(way)
            tokens[way] = sum(found["tokens"])
            print(f"turn {turn}, {way}: {tokens[way]} tokens in {found['seconds']:.2f} s", file=sys.stderr, flush=True)
            if turn:
                speeds[way].append(tokens[way] / found["seconds"])
        if turn:  # an interrupted run has shown what it had
            report(f"vllm plugin {args.requests} at once", COLUMNS, table(speeds, tokens, RATIOS))
    for worker in workers.values():
        worker.close()


RATIOS = (("vllm", "ours"), ("stock", "ours"), ("alpha 0", "stock"))

COLUMNS = ("what", "tokens a second, or ratio", "range", "n", "tokens of a run")


def table(
    speeds: Mapping[str, list[float]], tokens: Mapping[str, int], ratios: Sequence[tuple[str, str]]
) -> list[list[Any]]:
    """The rows of the report: each way, and the ratios within a turn."""
    rows: list[list[Any]] = [
        [way, statistics.median(found), _range(found), len(found), tokens[way]] for way, found in speeds.items()
    ]
    for over, under in ratios:
        found = [one / other for one, other in zip(speeds[over], speeds[under], strict=True)]
        rows.append([f"{over} over {under}", statistics.median(found), _range(found), len(found), ""])
    return rows


def _range(values: list[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}"


if __name__ == "__main__":
    main()
