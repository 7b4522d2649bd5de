"""Run as a program: steers a real vLLM in all ways that the tests look at, and prints what came out as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

LONG = "Tell me about the history of bread, from the first ovens to today, with names and places. " * 12
CALM, WILD = "calm", "wild"


def main(target: str, mode: str) -> None:
    """All that is tried, in one server."""
    from vllm import LLM, SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    # The tests watch vLLM's standard output for the last line only.
    llm = LLM(target, dtype="float32", max_model_len=768, gpu_memory_utilization=0.15, max_num_seqs=8,
              enforce_eager=mode == "eager", enable_prefix_caching=True, max_logprobs=20)  # fmt: skip

    def ask(asked: list[tuple[str, str | None]], capture: bool = False) -> list[dict[str, Any]]:
        params = [
            SamplingParams(temperature=0.0, max_tokens=6, logprobs=20,
                           extra_args={**({"anchorlm_steering": state} if state else {}),
                                       **({"anchorlm_capture": 1} if capture else {})})
            for _, state in asked
        ]  # fmt: skip
        out = llm.chat([[{"role": "user", "content": text}] for text, _ in asked], params, use_tqdm=False)
        return [
            {
                "text": text,
                "state": state,
                "tokens": list(one.outputs[0].token_ids),
                "logprobs": [
                    {token: value.logprob for token, value in step.items()} for step in one.outputs[0].logprobs
                ],
                "cached": one.num_cached_tokens,
            }
            for (text, state), one in zip(asked, out, strict=True)
        ]

    found: dict[str, Any] = {"mode": mode}
    found["batch"] = ask([("How do I bake bread?", state) for state in (None, CALM, WILD)] + [("Hello!", CALM)])
    orders: dict[str, tuple[str | None, ...]] = {"clean first": (None, WILD, None), "steered first": (WILD, None, WILD)}
    for name, order in orders.items():
        found[name] = [ask([(f"{name}. {LONG}", state)])[0] for state in order]
    for state in (None, WILD):
        ask([("What is the capital of France?", state)], capture=True)
        (captured,) = llm.collective_rpc("anchorlm_captured")[0].values()
        found[f"captured {state}"] = captured
    salted = InputProcessor.process_inputs
    InputProcessor.process_inputs = salted.__wrapped__
    for name, order in orders.items():
        unsalted = f"{name}, unsalted"
        found[unsalted] = [ask([(f"{unsalted}. {LONG}", state)])[0] for state in order[:2]]
    InputProcessor.process_inputs = salted
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
