from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from anchorlm.files import hold
from anchorlm.records import UserError
from anchorlm.serving._errors import ApiError
from anchorlm.serving._settings import AuditSettings, is_stream, own_output


class Audit:
    """A log of who asked and what was decided, one JSON object a line, only ever appended to.

    A request is written down before it is answered, and again when it has ended. Lines are whole or not there: one
    that was cut off by a full disk is taken back, and one that was cut off by a crash stays alone on its line. The file
    is locked. If it is moved or deleted, the next line begins a new one. A pipe, a terminal or the process's own output
    (`/dev/stdout`) gets the lines as they are, and is neither rotated nor locked.

    Args:
        settings: Where, what and how safely.
        failed: Told of each line that could not be written.

    Raises:
        UserError: The file cannot be written at the start, or another server writes to it.
    """

    def __init__(self, settings: AuditSettings, failed: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._failed = failed
        self._lock = threading.Lock()
        self._soon: threading.Timer | None = None
        self._out: BinaryIO | None = None
        self._torn = b""  # what ends a line of a pipe that was cut off
        self._stream = settings.file is not None and is_stream(settings.file)
        if settings.file is not None:
            try:
                self._out = self._open(settings.file)
            except BlockingIOError:
                raise UserError(
                    "Another server writes to this audit log: give each a file of its own, with --audit FILE."
                ) from None
            except OSError as error:
                if error.errno == errno.ENXIO:
                    raise UserError("No one reads the pipe of the audit log: start its reader first.") from None
                raise UserError(f"The audit log cannot be written ({error.strerror}): choose another file.") from None

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self._settings.file is not None

    @property
    def goes_on(self) -> bool:
        """Whether requests are answered that could not be written down."""
        return self._settings.on_error == "go on"

    def text(self, name: str, text: str) -> dict[str, str]:
        """A text as it is written down: its hash, or itself if that was asked for."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return {f"{name}_sha256": digest} | ({name: text} if self._settings.text else {})

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Appends a line. Slow where the disk is, so not for the event loop.

        Raises:
            ApiError: 503, nothing can be written, and the settings say to refuse then.
        """
        if self._settings.file is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        data = (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        try:
            with self._lock:
                self._append(self._settings.file, data)
        except OSError:
            self.late()

    def late(self) -> None:
        """A line could not be written, or not in time.

        Raises:
            ApiError: 503, if the settings say to refuse then.
        """
        self._failed()
        if self._settings.on_error == "refuse":
            raise ApiError(
                503, "The audit log cannot be written, so nothing is answered: tell the operator.",
                code="audit_unavailable", retry_after=30,
            ) from None  # fmt: skip

    def close(self) -> None:
        """Writes what is under way to the disk, if the disk answers."""
        if not self._lock.acquire(timeout=5):
            return
        try:
            if self._soon is not None:
                self._soon.cancel()
            if self._out is not None:
                if not self._stream:
                    os.fsync(self._out.fileno())
                self._out.close()
                self._out = None
        finally:
            self._lock.release()

    def _append(self, file: Path, data: bytes) -> None:
        if self._stream:
            self._pass_on(file, data)
            return
        if self._out is not None and _moved(self._out, file):
            self._out.close()
            self._out = None
        if self._out is None:
            self._out = self._open(file)
        place = self._out.seek(0, os.SEEK_END)
        if place and place + len(data) > self._settings.max_bytes:
            self._rotate(file)
            place = 0
        try:
            self._write(data)
        except OSError:
            self._out.truncate(place)
            raise
        if self._settings.fsync == "always":
            os.fsync(self._out.fileno())
        elif self._settings.fsync == "second" and self._soon is None:
            self._soon = threading.Timer(1.0, self._sync)
            self._soon.daemon = True
            self._soon.start()

    def _pass_on(self, file: Path, data: bytes) -> None:
        """Into a pipe. A reader that has gone may have been started again."""
        if self._out is None:
            self._out = self._open(file)
        rest = memoryview(self._torn + data)
        try:
            while rest:
                rest = rest[self._out.write(rest) or 0 :]
            self._torn = b""
        except OSError:
            self._torn = b"\n" if len(rest) < len(data) else self._torn
            self._out.close()
            self._out = None
            raise

    def _sync(self) -> None:
        """Brings the lines of the last second to the disk."""
        with self._lock:
            self._soon = None
            if self._out is not None:
                try:
                    os.fsync(self._out.fileno())
                except OSError:
                    self._failed()

    def _write(self, data: bytes) -> None:
        if self._out is not None and (written := self._out.write(data)) != len(data):
            raise OSError(f"only {written} bytes were written")

    def _rotate(self, file: Path) -> None:
        if self._out is not None:
            os.fsync(self._out.fileno())
            self._out.close()
            self._out = None
        for number in range(self._settings.keep, 0, -1):
            older = file.with_name(f"{file.name}.{number}")
            newer = file if number == 1 else file.with_name(f"{file.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        self._out = self._open(file)
        if self._settings.fsync == "always":
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new names, too, must outlive a power failure
            finally:
                os.close(folder)

    def _open(self, file: Path) -> BinaryIO:
        if self._stream:
            return _open_stream(file)
        # Unbuffered, so a line is in the file, or its failure is known, when the call returns.
        out = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0)
        try:
            hold(out)
            if size := out.seek(0, os.SEEK_END):
                out.seek(size - 1)
                if out.read(1) != b"\n":
                    out.write(b"\n")
        except BaseException:
            out.close()
            raise
        return out


def _open_stream(file: Path) -> BinaryIO:
    own = own_output(file)
    if own is not None:
        return os.fdopen(os.dup(own), "wb", buffering=0)
    # Without a reader a pipe would be waited for as it is opened; afterwards a full one is, until the deadline.
    descriptor = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb", buffering=0)


def _moved(out: BinaryIO, file: Path) -> bool:
    """Whether the name stands for another file by now, or for none."""
    try:
        there = file.stat()
    except FileNotFoundError:
        return True
    own = os.fstat(out.fileno())
    return (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino)
