"""What is said when vLLM fails."""

from __future__ import annotations

import logging
from typing import Any

from anchorlm.records import DefenseError, UserError

_log = logging.getLogger("anchorlm")


def in_words(error: Exception) -> str:
    """What vLLM says of an error, in a few words."""
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__


def failed(error: Exception, params: Any) -> DefenseError | UserError:
    """VLLM raised an error.

    Args:
        error: Of one of its many classes.
        params: What it was asked.
    """
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    said = in_words(error)
    if isinstance(error, EngineDeadError):
        return DefenseError("vLLM has ended: see what it printed, and start the guard again.")
    if isinstance(error, VLLMClientError | ValueError) and params.structured_outputs is not None:
        return UserError(f"vLLM does not take this response_format ({said}): change it, or leave it out.")
    _log.warning("vLLM failed: %s", error)
    return DefenseError(f"vLLM gave no answer ({type(error).__name__}: {said}): see what it printed.")


def slow(timeout: float) -> DefenseError:
    """Nothing whole came in time."""
    return DefenseError(
        f"vLLM gave no answer within {timeout:g} seconds: raise timeout, or send fewer requests at once."
    )


def wrong(what: str) -> DefenseError:
    """The answer cannot be used."""
    return DefenseError(f"vLLM gave an answer that cannot be used ({what}): ask again, and see what it printed.")


def elsewhere() -> UserError:
    """VLLM's engine was asked on two event loops, and hands on what its process says on the first one alone."""
    return UserError(
        "A model in vLLM serves the event loop that asked it first, and this is another: call it through a guard, or "
        "within one asyncio.run."
    )
