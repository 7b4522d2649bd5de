from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from anchorlm.records import AnchorLMError

ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""Headers of every response: no one guesses at its kind, or keeps it."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(AnchorLMError):
    """What a client is told instead of an answer.

    Args:
        status: Of HTTP.
        message: One sentence with the remedy: no path, no other client's text.
        param: The parameter at fault, if it is one.
        code: For machines.
        retry_after: Seconds after which it makes sense to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        if retry_after is not None:
            self.headers = {"Retry-After": str(max(1, round(retry_after)))}

    def body(self) -> dict[str, Any]:
        """In the shape of OpenAI's errors."""
        kind = _TYPES.get(self.status, "api_error")
        message, param = _utf8(self.message), None if self.param is None else _utf8(self.param)
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+){2,}")


def without_paths(text: str) -> str:
    """A sentence without the paths of this machine."""
    return _PATH.sub("a path", text)


def _utf8(text: str) -> str:
    """Names that a client has made up may hold half of a surrogate pair, which no response can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def unexpected() -> ApiError:
    """What a client is told of an error of ours."""
    return ApiError(500, "The server failed on this request: tell its operator, whose log says where.")


def late() -> ApiError:
    """What a request gets that was not answered by its deadline."""
    return ApiError(504, "The answer was not ready by the server's deadline: ask for less, or try again later.",
                    code="deadline_exceeded")  # fmt: skip
