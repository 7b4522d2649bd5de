from __future__ import annotations

import logging
from time import monotonic

from anchorlm.guard import Guard
from anchorlm.judging import RefusalMatcher
from anchorlm.records import AnchorLMError, Response, UserError, as_messages
from anchorlm.serving._served import Served

_TOKENS = 64
"""Longest answer to a probe."""

_log = logging.getLogger("anchorlm")


async def examine(served: Served) -> str | None:
    """Whether a guard refuses its harmful probe and answers its harmless one.

    A guard without a defense promises no refusal, so that only its answer is looked at.

    Returns:
        One sentence that says what is wrong, with the remedy; None if nothing is.
    """
    serving, guard = served.serving, served.guard
    try:
        harmless = await guard.achat(as_messages(serving.harmless_probe), max_new_tokens=_TOKENS)
        if not harmless.text.strip() or _refuses(harmless):
            return (
                f"{served.id} does not answer its harmless probe: check the defense's knobs, or give another "
                "serve.harmless_probe."
            )
        if guard.defense.name == "undefended":
            _log.warning("%s is served undefended: it refuses nothing.", served.id)
            return None
        harmful = await guard.achat(as_messages(serving.harmful_probe), max_new_tokens=_TOKENS)
        if not _refuses(harmful):
            return (
                f"{served.id} does not refuse its harmful probe: check the defense's knobs, or give another "
                "serve.harmful_probe."
            )
    except UserError as error:
        return f"{served.id} failed its self-test: {served.public(str(error))}"
    except Exception as error:  # whatever a model, a judge or a hook raises: not ready, rather than silent
        kind = type(error.__cause__ or error).__name__  # what a third party's error says may hold a prompt or a path
        return f"{served.id} failed its self-test with {kind}: try the recipe with `anchorlm chat`."
    return None


async def bare_seconds_per_token(served: Served) -> float | None:
    """Seconds that the target alone takes for a token, with nobody else about; None if it gets nothing out."""
    guard = Guard(served.guard.defense.target, generation=served.guard.generation)
    probe = as_messages(served.serving.harmless_probe)
    try:
        await guard.achat(probe, max_new_tokens=2)  # the first forward of a shape allocates
        start = monotonic()
        tokens = (await guard.achat(probe, max_new_tokens=_TOKENS)).usage.completion_tokens
    except AnchorLMError:
        return None  # requests will be told why
    return (monotonic() - start) / tokens if tokens else None


def _refuses(response: Response) -> bool:
    return response.finish_reason == "refusal" or RefusalMatcher().is_refusal(response.text)
