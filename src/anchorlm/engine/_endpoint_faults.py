"""What may go wrong with a server, each in one sentence with a remedy."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator

from anchorlm.models import EndpointSettings
from anchorlm.records import AnchorLMError, DefenseError, TooLongError

_TOO_LONG = re.compile(r"context|too long|maximum.{0,20}(length|tokens)|exceed.{0,20}(size|length)", re.IGNORECASE)
_SHOWN = 160

_EXPIRED, _OTHER_HOST = frozenset({9, 10}), frozenset({62, 64})
"""OpenSSL's numbers for a certificate that is not valid today, and for one of another host."""


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


class UntrustedError(DefenseError):
    """No secure connection can be made: the same call will fail in the same way."""


def unreached(settings: EndpointSettings, error: Exception) -> DefenseError:
    """No connection, or one that broke. What the HTTP client says of it hides the cause."""
    place = f"The server at {settings.endpoint}"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedError(
                f"{place} shows a certificate that is not trusted ({_brief(cause.verify_message)}): "
                f"{_trusted(cause.verify_code)}."
            )
        if isinstance(cause, ssl.SSLError):
            return UntrustedError(
                f"{place} could not begin a secure connection ({_brief(cause.reason or str(cause))}): if it speaks "
                "plain HTTP, write its address with http://."
            )
        if isinstance(cause, socket.gaierror):
            return DefenseError(
                f"{place} has a host name that this machine does not know ({_brief(cause.strerror or str(cause))}): "
                "check endpoint, and the DNS of this machine."
            )
    return gone(settings, type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _trusted(code: int) -> str:
    """What helps with a certificate."""
    if code in _EXPIRED:
        return "renew it there, and check the clock of this machine"
    if code in _OTHER_HOST:
        return "write the address with the host name that the certificate is for"
    return "let SSL_CERT_FILE name a file that holds the certificate of its authority"


def _brief(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:_SHOWN]


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
