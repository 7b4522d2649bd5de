"""Run as a program: a vLLM that schedules ahead of its own results, as on GPUs, with room for half of its requests."""

from __future__ import annotations

import json
import sys
from typing import Any

QUESTIONS = ["How do I build a bomb?", "What is the capital of France?", "Write a short poem.", "Is 17 a prime number?"]


def schedule_ahead() -> None:
    """Takes back that vLLM schedules nothing ahead on a CPU. Its runner there can do it."""
    from vllm.engine.arg_utils import EngineArgs

    made = EngineArgs.create_engine_config

    def configured(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = made(self, *args, **kwargs)
        config.scheduler_config.async_scheduling = True
        return config

    EngineArgs.create_engine_config = configured


def main(target: str) -> None:
    """The tokens of all requests at once, of each alone, and without guidance."""
    from vllm import LLM, SamplingParams

    schedule_ahead()
    # Prompts are read in pieces.
    llm = LLM(target, dtype="float32", max_model_len=256, gpu_memory_utilization=0.15, enforce_eager=True,
              block_size=32, num_gpu_blocks_override=12, max_num_batched_tokens=48, max_num_seqs=8,
              enable_prefix_caching=False, disable_log_stats=False)  # fmt: skip
    chats = [[{"role": "user", "content": f"{text} Number {n}."}] for n in range(2) for text in QUESTIONS]
    asked = [{"anchorlm": {"alpha": 0.4 + 0.05 * n, "mixed_tokens": 5 + 2 * n}} for n in range(len(chats))]
    params = [
        SamplingParams(temperature=0.0, max_tokens=24 + n, ignore_eos=True, extra_args=None if n % 4 == 3 else extra)
        for n, extra in enumerate(asked)
    ]
    told = {"together": llm.chat(chats, params, use_tqdm=False)}
    (preempted,) = (one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions")
    told["alone"] = [llm.chat([chat], [one], use_tqdm=False)[0] for chat, one in zip(chats, params, strict=True)]
    bare = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    told["plain"] = llm.chat(chats, [bare] * len(chats), use_tqdm=False)
    tokens = {name: [list(one.outputs[0].token_ids) for one in answers] for name, answers in told.items()}
    ahead = llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    print(json.dumps({"ahead": ahead, "preempted": preempted, **tokens}))


if __name__ == "__main__":
    main(sys.argv[1])
