from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from anchorlm.judging._scores import Scorer
from anchorlm.records import DefenseError, Messages, UserError


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would make a request without a body of it."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the redirect as the error that it is."""


_OPENER = build_opener(_NoRedirects)


class RemoteScorer(Scorer):
    """A scorer behind an HTTP address.

    It gets `{"messages": [...], "responses": [...]}` by POST and answers `{"scores": [...]}`, a number per response.

    Args:
        url: The address, with http or https.
        timeout: Seconds until a request is given up.
        retries: How often a request that failed is sent again.

    Raises:
        UserError: The address is none, or a number is out of range.
    """

    def __init__(self, url: str, *, timeout: float = 30.0, retries: int = 1) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or parts.scheme not in ("http", "https") or any(letter <= " " for letter in url):
            raise UserError(f"{url!r} is no address of a scorer: write it as http://host:port/path.")
        if not timeout > 0 or retries < 0:
            raise UserError("A remote scorer needs a timeout above 0 and retries of at least 0.")
        self._url = url
        self._timeout = timeout
        self._retries = retries
        # Whatever else stands in the address may be a secret.
        self._shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return f"remote:{self._shown}"

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Scorer`; what runs behind the address is not known."""
        return {"address": hashlib.sha256(self._url.encode()).hexdigest()[:16]}

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        if not responses:
            return []
        body = json.dumps({"messages": [dict(turn) for turn in messages], "responses": list(responses)}).encode()
        error: Exception | None = None
        for _ in range(self._retries + 1):
            try:
                answer = json.loads(await asyncio.to_thread(self._post, body))
                scores = [float(score) for score in answer["scores"]]
            except (HTTPException, OSError, ValueError, KeyError, TypeError) as failure:
                error = failure
                continue
            if len(scores) != len(responses):
                raise DefenseError(f"The scorer {self._shown} gave {len(scores)} scores for {len(responses)} texts.")
            return scores
        raise DefenseError(
            f"The scorer {self._shown} gave no scores ({type(error).__name__}: {error}): check that it runs and gives "
            '{"scores": [...]}.'
        )

    def _post(self, body: bytes) -> bytes:
        request = Request(self._url, data=body, headers={"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=self._timeout) as response:
                content: bytes = response.read()
        except HTTPError as error:
            error.close()  # it holds the connection
            raise
        return content
