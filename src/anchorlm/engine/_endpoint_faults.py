"""What may go wrong with a server, each in one sentence with a remedy."""

from __future__ import annotations

import json
import re

from anchorlm.models import EndpointSettings
from anchorlm.records import AnchorLMError, DefenseError, TooLongError

_TOO_LONG = re.compile(r"context|too long|maximum.{0,20}(length|tokens)|exceed.{0,20}(size|length)", re.IGNORECASE)
_SHOWN = 160


class Passing(Exception):  # noqa: N818 (it is no error yet: the call is sent again)
    """A call failed in a way that may pass.

    Args:
        error: What is raised if it does not.
        wait: Seconds that the server asks to wait.
    """

    def __init__(self, error: DefenseError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class MissingError(DefenseError):
    """The server has nothing at this address."""


class RejectedError(DefenseError):
    """The server does not take a request as it was written."""


def gone(settings: EndpointSettings, why: str) -> DefenseError:
    """Nothing usable came."""
    return DefenseError(f"The server at {settings.endpoint} gave no answer ({why}): check that it runs there.")


def slow(settings: EndpointSettings) -> DefenseError:
    """Nothing whole came in time."""
    return DefenseError(
        f"The server at {settings.endpoint} gave no whole answer within {settings.timeout:g} seconds: raise timeout, "
        "ask for less, or check that it runs there."
    )


def refused(settings: EndpointSettings, status: int, said: str) -> DefenseError:
    """It says that it cannot now."""
    what = "has too much to do" if status == 429 else "fails"
    return DefenseError(
        f"The server at {settings.endpoint} {what} (HTTP status {status}{_said(said)}): try again later, or send fewer "
        "requests at once."
    )


def fault(settings: EndpointSettings, status: int, said: str) -> AnchorLMError:
    """It says that the call is not in order."""
    place = f"The server at {settings.endpoint}"
    if 300 <= status < 400:
        return DefenseError(
            f"{place} sends callers elsewhere (HTTP status {status}): give the final address as endpoint."
        )
    if status in (401, 403):
        return DefenseError(f"{place} does not take the API key (HTTP status {status}): check key_env or key_file.")
    if status in (404, 405, 501):
        return MissingError(
            f"{place} knows no such address or model (HTTP status {status}{_said(said)}): check endpoint and model."
        )
    if status == 413 or (status in (400, 422) and _TOO_LONG.search(said)):
        return TooLongError(f"The prompt is too long for the server at {settings.endpoint}{_said(said)}: shorten it.")
    return RejectedError(
        f"{place} does not take the request (HTTP status {status}{_said(said)}): run `anchorlm check`."
    )


def wrong(settings: EndpointSettings, what: str) -> DefenseError:
    """The answer cannot be used."""
    return DefenseError(
        f"The server at {settings.endpoint} gave an answer that cannot be used ({what}): ask it again, and look at its "
        "log if it stays so."
    )


def _said(text: str) -> str:
    """The server's own words, if there are some, in a few words."""
    try:
        data = json.loads(text)
        error = data.get("error", data)
        text = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        return ""
    words = " ".join(str(text).split()).rstrip(".")
    if not words:
        return ""
    return f": {words[:_SHOWN]}{'...' if len(words) > _SHOWN else ''}"
