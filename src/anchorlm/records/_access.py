from __future__ import annotations

from enum import IntEnum


class Access(IntEnum):
    """How much of a model an engine offers. Each rung includes those below."""

    TEXT = 1
    LOGPROBS = 2
    LOGITS = 3
    ACTIVATIONS = 4
