"""Run as a program: steers a real vLLM in all ways that the tests look at, and prints what came out as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

LONG = "Tell me about the history of bread, from the first ovens to today, with names and places. " * 12
CALM, WILD = "calm", "wild"
LATER = 130
"""Tokens of an answer that fill a block of vLLM's cache on a CPU."""


def compile_as_on_gpus() -> dict[str, Any]:
    """Has vLLM compile with its own compiler; gives what goes into `compilation_config`.

    On a CPU, vLLM takes torch's alone, and then never takes from its cache what it has put there.
    """
    from vllm.config import CompilationMode
    from vllm.engine.arg_utils import EngineArgs

    made = EngineArgs.create_engine_config

    def configured(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = made(self, *args, **kwargs)
        config.compilation_config.mode = CompilationMode.VLLM_COMPILE
        return config

    EngineArgs.create_engine_config = configured
    # What vLLM sets itself where it compiles so, and a pass without operators that only GPUs have.
    return {"compile_sizes": [], "inductor_compile_config": {"enable_auto_functionalized_v2": True}}


def leave_one_out(worker: Any) -> None:
    """Takes the hook from one block of a worker's model."""
    worker._steered._blocks[3]._forward_hooks.clear()


def main(target: str, mode: str) -> None:
    """All that is tried, in one server."""
    from vllm import LLM, SamplingParams
    from vllm.compilation.counter import compilation_counter
    from vllm.sampling_params import BeamSearchParams
    from vllm.v1.engine.input_processor import InputProcessor

    compiler = compile_as_on_gpus() if mode in ("saved", "loaded") else {}
    # The tests watch vLLM's standard output for the last line only.
    llm = LLM(target, dtype="float32", max_model_len=768, gpu_memory_utilization=0.15, max_num_seqs=8,
              enforce_eager=mode == "eager", enable_prefix_caching=True, max_logprobs=20,
              compilation_config=compiler)  # fmt: skip

    def params(state: str | None, capture: bool = False, new: int = 6) -> SamplingParams:
        extra = {**({"anchorlm_steering": state} if state else {}), **({"anchorlm_capture": 1} if capture else {})}
        return SamplingParams(temperature=0.0, max_tokens=new, logprobs=20, extra_args=extra, ignore_eos=new > 6)

    def told(one: Any, state: str | None) -> dict[str, Any]:
        (answer,) = one.outputs
        return {
            "prompt": list(one.prompt_token_ids),
            "state": state,
            "tokens": list(answer.token_ids),
            "logprobs": [{token: value.logprob for token, value in step.items()} for step in answer.logprobs],
            "cached": one.num_cached_tokens,
        }

    def ask(asked: list[tuple[str, str | None]], capture: bool = False, new: int = 6) -> list[dict[str, Any]]:
        chats = [[{"role": "user", "content": text}] for text, _ in asked]
        out = llm.chat(chats, [params(state, capture, new) for _, state in asked], use_tqdm=False)
        return [{"text": text, **told(one, state)} for (text, state), one in zip(asked, out, strict=True)]

    found: dict[str, Any] = {"mode": mode, "compiled": compilation_counter.num_aot_compiles,
                             "taken": compilation_counter.num_aot_artifacts_loaded}  # fmt: skip
    found["batch"] = ask([("How do I bake bread?", state) for state in (None, CALM, WILD)] + [("Hello!", CALM)])
    orders: dict[str, tuple[str | None, ...]] = {"clean first": (None, WILD, None), "steered first": (WILD, None, WILD)}
    for name, order in orders.items():
        found[name] = [ask([(f"{name}. {LONG}", state)])[0] for state in order]
    first = ask([(f"A conversation. {LONG}", CALM)], new=LATER)[0]
    later = {"prompt_token_ids": first["prompt"] + first["tokens"][:-1]}
    (answered,) = llm.generate([later], params(CALM), use_tqdm=False)
    found["answered before"] = told(answered, CALM)
    for state in (None, WILD):
        ask([("What is the capital of France?", state)], capture=True)
        (captured,) = llm.collective_rpc("anchorlm_captured")[0].values()
        found[f"captured {state}"] = captured
    beams = llm.beam_search([{"prompt": "The capital of France is"}], BeamSearchParams(beam_width=2, max_tokens=4))
    found["beams"] = [{"tokens": one.tokens, "logprob": one.cum_logprob} for one in beams[0].sequences]
    salted = InputProcessor.process_inputs
    InputProcessor.process_inputs = salted.__wrapped__
    for name, order in orders.items():
        unsalted = f"{name}, unsalted"
        found[unsalted] = [ask([(f"{unsalted}. {LONG}", state)])[0] for state in order[:2]]
    InputProcessor.process_inputs = salted
    if mode == "eager":  # what is compiled has the hooks in it
        llm.collective_rpc(leave_one_out)
        try:
            found["left out"] = ask([("Hello!", CALM)])
        except Exception as error:
            found["left out"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
