"""Sequences running on models: the one place where forwards happen."""

from anchorlm.engine._bounded import as_done
from anchorlm.engine._local import LocalEngine
from anchorlm.engine._protocol import Engine, Generated, TokenSequence
from anchorlm.engine._runtime import Runtime, runtime
from anchorlm.engine._sampling import Sampler, choose, token_scores
from anchorlm.engine._served import attention_windows
from anchorlm.engine._steering import Edit, Positions, Steering
from anchorlm.engine._text import TextStream

__all__ = [
    "Edit",
    "Engine",
    "Generated",
    "LocalEngine",
    "Positions",
    "Runtime",
    "Sampler",
    "Steering",
    "TextStream",
    "TokenSequence",
    "as_done",
    "attention_windows",
    "choose",
    "runtime",
    "token_scores",
]
