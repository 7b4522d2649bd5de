from __future__ import annotations

import logging
from time import monotonic

from anchorlm.guard import Guard
from anchorlm.records import AnchorLMError, as_messages
from anchorlm.serving.session._model import ServedModel

_TOKENS = 64
"""Longest answer that is timed."""

_log = logging.getLogger("anchorlm")


async def examine(served: ServedModel, *, raw: bool) -> list[str]:
    """Whether a guard passes its probe through every door that is open to clients.

    Args:
        served: Whom.
        raw: Whether `/v1/completions` is open.

    Returns:
        A sentence for everything that is wrong, with the remedy.
    """
    found = await served.guard.aprobe(raw=raw)
    if not served.guard.defense.refuses:
        _log.warning("%s is served undefended: it refuses nothing.", served.id)
    return [f"{served.id} {served.public(one.said)}" for one in found.failures]


async def bare_seconds_per_token(served: ServedModel) -> float | None:
    """Seconds that the target alone takes for a token, with no one else about. None if it gets nothing out."""
    guard = Guard(served.guard.defense.target, generation=served.guard.generation)
    probe = as_messages(served.guard.probes.harmless)
    try:
        await guard.achat(probe, max_new_tokens=2)  # the first forward of a shape allocates
        start = monotonic()
        tokens = (await guard.achat(probe, max_new_tokens=_TOKENS)).usage.completion_tokens
    except AnchorLMError:
        return None  # requests will be told why
    return (monotonic() - start) / tokens if tokens else None
