"""Stop texts of other harnesses, as the server treats them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anchorlm.guard import Guard
from anchorlm.records import FinishReason, Request, Response, first_stop


def with_stops(request: Request, stops: str | Sequence[str] | None) -> Request:
    """The request with the texts that end its answer, which its judges then read as it is cut. Empty ones end nothing.

    Args:
        request: As the guard made it.
        stops: One text, several, or none.
    """
    given = [stops] if isinstance(stops, str) else stops or ()
    return replace(request, stops=tuple(filter(None, given)))


def given_out(guard: Guard, request: Request, response: Response) -> tuple[str, FinishReason]:
    """What the server gives out of a response, and why it ends: a stop cuts an answer, but not the configured refusal.

    Args:
        guard: Who answered.
        request: What was asked, with its stops.
        response: Everything that was said.
    """
    answer, reason = response.text, response.finish_reason
    if reason == "refusal":  # behind what was said before it, if anything
        answer = answer.removesuffix(guard.defense.settings_for(request).refusal)
    if (place := first_stop(answer, request.stops)) is None:
        return response.text, reason
    return answer[:place], "stop"
