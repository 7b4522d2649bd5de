"""Sequences running on models: the one place where forwards happen."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.engine._ahead import read_ahead, stepwise, unnamed
    from anchorlm.engine._bounded import as_done
    from anchorlm.engine._choices import Positions
    from anchorlm.engine._endpoint import EndpointEngine
    from anchorlm.engine._local import LocalEngine
    from anchorlm.engine._protocol import Engine, Generated, TokenSequence
    from anchorlm.engine._runtime import Runtime, runtime
    from anchorlm.engine._sampling import Sampler, choose, token_scores
    from anchorlm.engine._served import attention_windows
    from anchorlm.engine._steering import Edit, Steering, require_finite
    from anchorlm.engine._text import TextStream
    from anchorlm.engine._thoughts import THOUGHT_MARGIN, ThoughtGuide, ThoughtWriter
    from anchorlm.engine._vllm import VLLMEngine
    from anchorlm.engine._vllm_process import join_owner
    from anchorlm.engine._vllm_wishes import GUARD, PLACES, ROOM, Wishes
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_ahead": "read_ahead stepwise unnamed",
            "_bounded": "as_done",
            "_choices": "Positions",
            "_endpoint": "EndpointEngine",
            "_local": "LocalEngine",
            "_protocol": "Engine Generated TokenSequence",
            "_runtime": "Runtime runtime",
            "_sampling": "Sampler choose token_scores",
            "_served": "attention_windows",
            "_steering": "Edit Steering require_finite",
            "_text": "TextStream",
            "_thoughts": "THOUGHT_MARGIN ThoughtGuide ThoughtWriter",
            "_vllm": "VLLMEngine",
            "_vllm_wishes": "GUARD PLACES ROOM Wishes",
            "_vllm_process": "join_owner",
        },
    )

__all__ = [
    "GUARD",
    "PLACES",
    "ROOM",
    "THOUGHT_MARGIN",
    "Edit",
    "EndpointEngine",
    "Engine",
    "Generated",
    "LocalEngine",
    "Positions",
    "Runtime",
    "Sampler",
    "Steering",
    "TextStream",
    "ThoughtGuide",
    "ThoughtWriter",
    "TokenSequence",
    "VLLMEngine",
    "Wishes",
    "as_done",
    "attention_windows",
    "choose",
    "join_owner",
    "read_ahead",
    "require_finite",
    "runtime",
    "stepwise",
    "token_scores",
    "unnamed",
]
