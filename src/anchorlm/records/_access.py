from __future__ import annotations

from enum import Flag


class Access(Flag):
    """What an engine offers of a model. An engine in another process may offer activations without all logits.

    Attributes:
        TEXT: What it writes.
        LOGPROBS: The likeliest next tokens, too.
        LOGITS: Those of all tokens.
        ACTIVATIONS: They can be read, and constant vectors be added.
        EDITS: What is added may also be computed from them.
        ALL: All of these.
    """

    TEXT = 1
    LOGPROBS = 2 | TEXT
    LOGITS = 4 | LOGPROBS
    ACTIVATIONS = 8 | TEXT
    EDITS = 16 | ACTIVATIONS
    ALL = LOGITS | EDITS

    @property
    def words(self) -> str:
        """As a user is told."""
        logits = next(word for word in (Access.LOGITS, Access.LOGPROBS, Access.TEXT) if word in self)
        acts = next((word for word in (Access.EDITS, Access.ACTIVATIONS) if word in self), None)
        if acts is None:
            return _WORDS[logits]
        return _WORDS[acts] if logits is Access.TEXT else f"{_WORDS[logits]} and {_WORDS[acts]}"


_WORDS = {
    Access.TEXT: "text",
    Access.LOGPROBS: "logprobs",
    Access.LOGITS: "logits",
    Access.ACTIVATIONS: "activations",
    Access.EDITS: "changes of activations",
}
