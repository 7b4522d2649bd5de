"""Sequences running on models: the one place where forwards happen."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.engine._bounded import as_done
    from anchorlm.engine._choices import Positions
    from anchorlm.engine._local import LocalEngine
    from anchorlm.engine._protocol import Engine, Generated, TokenSequence
    from anchorlm.engine._runtime import Runtime, runtime
    from anchorlm.engine._sampling import Sampler, choose, token_scores
    from anchorlm.engine._served import attention_windows
    from anchorlm.engine._steering import Edit, Steering
    from anchorlm.engine._text import TextStream
    from anchorlm.engine._thoughts import THOUGHT_MARGIN, ThoughtWriter
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_bounded": "as_done",
            "_choices": "Positions",
            "_local": "LocalEngine",
            "_protocol": "Engine Generated TokenSequence",
            "_runtime": "Runtime runtime",
            "_sampling": "Sampler choose token_scores",
            "_served": "attention_windows",
            "_steering": "Edit Steering",
            "_text": "TextStream",
            "_thoughts": "THOUGHT_MARGIN ThoughtWriter",
        },
    )

__all__ = [
    "THOUGHT_MARGIN",
    "Edit",
    "Engine",
    "Generated",
    "LocalEngine",
    "Positions",
    "Runtime",
    "Sampler",
    "Steering",
    "TextStream",
    "ThoughtWriter",
    "TokenSequence",
    "as_done",
    "attention_windows",
    "choose",
    "runtime",
    "token_scores",
]
