from __future__ import annotations


class AnchorLMError(Exception):
    """Base of everything that AnchorLM raises on purpose: one sentence, with the remedy."""


class UserError(AnchorLMError):
    """A mistake that the user can fix: a wrong path, knob, file or combination. The command line exits with 2."""


class ModelError(UserError):
    """A model could not do its work on a request that was in order: no numbers came out, or its memory ran out."""


class NoToolsError(UserError):
    """Tools are offered where no one can call them, or no one vouches for the calls."""


class TooLongError(UserError):
    """A prompt that a model, or an engine's memory, cannot hold together with its answer."""


class UnreadableError(TooLongError):
    """A prompt that leaves a judge or a scorer no room for an answer: nothing could be judged, whatever is written."""


class DefenseError(AnchorLMError):
    """A defense could not do its work, and an undefended answer would be unsafe.

    The guard turns it into the configured refusal or lets it pass, never into the target's bare answer.
    """
