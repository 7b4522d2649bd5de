"""What is asked of vLLM, and what it answers, in its own words. All that it could choose for itself is said."""

from __future__ import annotations

from typing import Any

from anchorlm.engine._endpoint_reading import Written
from anchorlm.models import CausalModel
from anchorlm.records import GenerationSettings, TokenScore, schema_of


def one_step(top: int | None, *, whole: bool = False) -> Any:
    """For the distribution of the next token, which vLLM gives before any sampler.

    Args:
        top: How many tokens of it. None: it is not wanted.
        whole: Whether every token of the prompt is to be computed, whatever was kept of it.
    """
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, logprobs=top, flat_logprobs=top is not None, detokenize=False,
                          skip_reading_prefix_cache=whole or None)  # fmt: skip


def asked(model: CausalModel, generation: GenerationSettings, room: int, top: int, *, streamed: bool = False) -> Any:
    """How to choose tokens, where to end, and what to tell of each token."""
    from vllm import SamplingParams
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    seed = generation.seed % (1 << 63)  # not on a CPU, where vLLM 0.32 does not survive all seeds
    own, format = generation.do_sample, generation.response_format
    # A text that begins another turn may stand in a value.
    texts = [] if format is not None else list(model.stop_texts)
    return SamplingParams(
        temperature=generation.temperature if own else 0.0,
        top_p=generation.top_p if own else 1.0,
        top_k=(generation.top_k or 0) if own else 0,
        min_p=generation.min_p if own else 0.0,
        presence_penalty=generation.presence_penalty,
        frequency_penalty=generation.frequency_penalty,
        repetition_penalty=generation.repetition_penalty,
        seed=seed if own and not current_platform.is_cpu() else None,
        max_tokens=room,
        stop=texts or None,
        stop_token_ids=sorted(model.stop_ids.union(generation.stop_token_ids)),
        logprobs=None if generation.logprobs is None else min(generation.logprobs, top),
        detokenize=bool(texts),
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
        structured_outputs=None if format is None else StructuredOutputsParams(json=schema_of(format)),
    )


def written(answer: Any) -> Written:
    """The tokens of an answer, or of a part of one, without the token that ended it.

    Args:
        answer: vLLM's, of one sequence.
    """
    ended = answer.finish_reason == "stop"
    ids = list(answer.token_ids)
    if ended and ids and not isinstance(answer.stop_reason, str):  # a text that ends it is looked for here, too
        ids.pop()
    scores = [_score(token, step) for token, step in zip(ids, answer.logprobs or (), strict=False)]
    return Written(ids, scores if len(scores) == len(ids) else [], ended)


def _score(token: int, step: Any) -> TokenScore:
    ranked = sorted((one.rank, name, one.logprob) for name, one in step.items())
    return TokenScore(token, step[token].logprob, tuple((name, value) for _, name, value in ranked))
