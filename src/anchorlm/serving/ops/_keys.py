from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from pydantic import Field

from anchorlm.records import Settings, UserError
from anchorlm.serving._errors import ApiError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_log = logging.getLogger("anchorlm")


class KeySettings(Settings):
    """What the file of keys says about one key."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key. The key itself is stored nowhere.")
    operator: bool = Field(default=False, description="May see full traces and metrics.")
    requests_per_minute: float | None = Field(default=None, gt=0, description="Rate limit. By default there is none.")
    concurrency: int | None = Field(
        default=None, ge=1, description="Most requests at once. By default there is no limit."
    )


class Caller:
    """Anyone who sends requests under one key, and how much of its limits is used up.

    Attributes:
        name: Of the key, for the audit log.
        settings: What the file of keys says about it.
        revoked: Whether it no longer stands there.
    """

    def __init__(self, name: str, settings: KeySettings) -> None:
        self.name = name
        self.settings = settings
        self.revoked = False
        self._under_way = 0
        self._tokens = self._size
        self._filled = monotonic()

    @property
    def operator(self) -> bool:
        """Whether full traces and metrics may be seen."""
        return self.settings.operator

    def check(self) -> None:
        """Whether the key is still valid.

        Raises:
            ApiError: 401, it was revoked meanwhile.
        """
        if self.revoked:
            raise unknown_key()

    @property
    def _size(self) -> float:
        """Requests that may come at once before the rate counts: those of ten seconds, but at least one."""
        return max(1.0, (self.settings.requests_per_minute or 0.0) / 6)

    @contextmanager
    def request(self, answers: int = 1) -> Iterator[None]:
        """Counts one request for as long as it takes. For the rate, next to `draw`, the answers beyond the first.

        Raises:
            ApiError: 429, too many at once.
        """
        limit = self.settings.concurrency
        if limit is not None and self._under_way >= limit:
            raise ApiError(
                429, f"This key may have {limit} requests under way at once: wait for one.", code="concurrency_limit",
                retry_after=1,
            )  # fmt: skip
        self._tokens -= answers - 1  # below zero for more than the rate holds: the next request waits the longer
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def draw(self) -> None:
        """Counts a request for the rate, whatever becomes of it.

        Raises:
            ApiError: 429, over the key's rate.
        """
        if self.settings.requests_per_minute is None:
            return
        rate, now = self.settings.requests_per_minute / 60, monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._filled) * rate)
        self._filled = now
        if self._tokens < 1:
            raise ApiError(
                429,
                f"This key may send {self.settings.requests_per_minute:g} requests a minute: slow down.",
                code="rate_limit_exceeded",
                retry_after=(1 - self._tokens) / rate,
            )
        self._tokens -= 1


class Keys:
    """The API keys of a server, known by their hashes alone.

    True where keys are asked for.

    Args:
        settings: By name. Without any, everyone is let in as `anonymous`.
        trusted: Whether, without keys, everyone counts as the operator: right on the loopback.
    """

    def __init__(self, settings: Mapping[str, KeySettings], *, trusted: bool = False) -> None:
        self._locked = bool(settings)
        self._callers: list[tuple[bytes, Caller]] = []
        self.renew(settings)
        self._anonymous, self._stranger = (
            Caller("anonymous", KeySettings(sha256="0" * 64, operator=operator)) for operator in (trusted, False)
        )

    def __bool__(self) -> bool:
        return self._locked

    def renew(self, settings: Mapping[str, KeySettings]) -> list[Caller]:
        """Takes over what the file of keys says by now. Anyone who stays keeps count of what is used up.

        Returns:
            Those whose keys are no longer valid. If none is left, no one is let in: keys that were asked for once are
            asked for until the server ends.
        """
        known = {(caller.name, digest): caller for digest, caller in self._callers}
        self._callers = []
        for name, one in settings.items():
            digest = bytes.fromhex(one.sha256)
            caller = known.pop((name, digest), None) or Caller(name, one)
            caller.settings = one
            self._callers.append((digest, caller))
        for caller in known.values():
            caller.revoked = True
        return list(known.values())

    @classmethod
    def load(cls, file: Path) -> Keys:
        """Reads a file of keys.

        Raises:
            UserError: No such file, no key in it, or not of the form that `new_key` writes.
        """
        if not (settings := _read(file)):
            raise UserError("The file of API keys holds no key: add one with `anchorlm serve --new-key NAME`.")
        return cls(settings)

    def caller(self, authorization: str | None, *, proxied: bool = False) -> Caller:
        """Anyone who presents a header `Authorization: Bearer KEY`. Every key is compared, in constant time.

        Args:
            authorization: The header.
            proxied: Whether the request came through a proxy: anyone who is behind it is not trusted without a key.

        Raises:
            ApiError: 401, no key or one that is not known.
        """
        if not self._locked:
            return self._stranger if proxied else self._anonymous
        scheme, _, key = (authorization or "").partition(" ")
        presented = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [caller for digest, caller in self._callers if hmac.compare_digest(digest, presented)]
        if not found or scheme.lower() != "bearer":
            raise unknown_key()
        return found[0]


class KeyFile:
    """The file from which a server's keys came, watched for changes.

    Args:
        file: The file.
        keys: What came from it.
    """

    def __init__(self, file: Path, keys: Keys) -> None:
        self._file = file
        self._keys = keys
        self._taken = self._last = self._state()

    def look(self, *, now: bool = False) -> list[Caller]:
        """Reads the file again if it has changed, and has not changed any more since the last look.

        A file that cannot be read changes nothing, which the log says once: an editor may be writing it.

        Args:
            now: Read it whether it has changed or not.

        Returns:
            Those whose keys are no longer valid.
        """
        before, self._last = self._last, self._state()
        state = self._last
        if not now and (state == self._taken or state != before):
            return []
        self._taken = state
        try:
            revoked = self._keys.renew(_read(self._file))
        except UserError as error:
            _log.error("The API keys stay as they were. %s", error)
            return []
        _log.warning("The API keys were read again.")
        return revoked

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def unknown_key() -> ApiError:
    """What anyone who has no key is told."""
    return ApiError(
        401, "No valid API key was given: send the header Authorization: Bearer KEY.", code="invalid_api_key"
    )


def _read(file: Path) -> dict[str, KeySettings]:
    """What a file says of its keys, by their names."""
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no TOML"
        raise UserError(
            f"The file of API keys {str(file)!r} cannot be read ({why}): make one with `anchorlm serve --new-key NAME "
            "--keys FILE`."
        ) from None
    if not all(isinstance(values, dict) for values in data.values()):
        raise UserError("The file of API keys holds something else: make one with `anchorlm serve --new-key NAME`.")
    return {name: KeySettings.parse(values, where=f"the API key {name}") for name, values in data.items()}


def new_key(file: Path, name: str, *, operator: bool = False) -> str:
    """Adds a key to a file, which only its owner can read, and returns it: it is not stored and cannot be shown again.

    Raises:
        UserError: A name that is taken or not plain, or a file that cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a key: use letters, digits, - and _.")
    try:
        text = file.read_text("utf-8") if file.exists() else ""
        names = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise UserError("The file of API keys cannot be read: fix it, or choose another for --keys.") from None
    if name in names:
        raise UserError(f"There is a key named {name!r} already: choose another name, or delete its section first.")
    key = f"alm-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    gap = "" if not text or text.endswith("\n") else "\n\n"
    section = f'{gap}[{name}]\nsha256 = "{digest}"\noperator = {str(operator).lower()}\n\n'
    try:
        if not file.exists():
            file.touch(mode=0o600)
        with file.open("a", encoding="utf-8") as out:
            out.write(section)
    except OSError as error:
        raise UserError(f"The file of keys cannot be written ({error.strerror}): choose another for --keys.") from None
    return key
