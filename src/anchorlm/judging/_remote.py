from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from urllib.parse import urlsplit

from anchorlm.judging._scores import Scorer
from anchorlm.records import DefenseError, Messages, UserError


class RemoteScorer(Scorer):
    """A scorer behind an HTTP address.

    It gets `{"messages": [...], "responses": [...]}` by POST and answers `{"scores": [...]}`, a number per response.
    Redirects are not followed: they would make a request without a body of it.

    Args:
        url: The address, with http or https.
        timeout: Seconds until a call is given up: from finding the address to the last byte, retries included.
        retries: How often a request that failed is sent again.

    Raises:
        UserError: The address is none, a number is out of range, or httpx is not installed.
    """

    def __init__(self, url: str, *, timeout: float = 30.0, retries: int = 1) -> None:
        try:
            import httpx
        except ImportError:
            raise UserError("A remote scorer needs httpx: pip install 'anchorlm[endpoint]'.") from None
        try:
            parts, known = urlsplit(url), httpx.URL(url)
            host, port = parts.hostname, parts.port
        except (ValueError, httpx.InvalidURL):
            host = port = None
        if not host or parts.scheme not in ("http", "https") or any(letter <= " " for letter in url):
            raise UserError(f"{url!r} is no address of a scorer: write it as http://host:port/path.")
        if not timeout > 0 or retries < 0:
            raise UserError("A remote scorer needs a timeout above 0 and retries of at least 0.")
        self._url = known
        self._timeout = timeout
        self._retries = retries
        # Whatever else stands in the address may be a secret.
        self._shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
        self._digest = hashlib.sha256(url.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return f"remote:{self._shown}"

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Scorer`. What runs behind the address is not known."""
        return {"address": self._digest}

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        if not responses:
            return []
        body = {"messages": [dict(turn) for turn in messages], "responses": list(responses)}
        try:
            async with asyncio.timeout(self._timeout):
                scores = await self._ask(body)
        except TimeoutError:
            raise self._failed(f"nothing within {self._timeout:g} seconds") from None
        if len(scores) != len(responses):
            raise DefenseError(f"The scorer {self._shown} gave {len(scores)} scores for {len(responses)} texts.")
        return scores

    async def _ask(self, body: Mapping[str, object]) -> list[float]:
        import httpx

        why = ""
        # The deadline around all this is the only one: httpx's own are for each read, however many there are.
        async with httpx.AsyncClient(timeout=None, verify=_certificates()) as client:
            for _ in range(self._retries + 1):
                try:
                    answer = await client.post(self._url, json=body)
                    if answer.is_success:
                        return [float(score) for score in _listed(answer.json()["scores"])]
                    why = f"HTTP status {answer.status_code}"
                except (httpx.HTTPError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                    why = f"{type(error).__name__}: {error}"
        raise self._failed(why)

    def _failed(self, why: str) -> DefenseError:
        return DefenseError(
            f'The scorer {self._shown} gave no scores ({why}): check that it runs and gives {{"scores": [...]}}.'
        )


def _listed(scores: object) -> list[float]:
    if not isinstance(scores, list) or not all(isinstance(one, int | float) for one in scores):
        raise TypeError("the scores are no list of numbers")
    return scores


@cache
def _certificates() -> ssl.SSLContext:
    """Those that httpx trusts. Reading them for every call would take longer than a call."""
    import httpx

    return httpx.create_ssl_context()
