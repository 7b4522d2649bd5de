from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self

from anchorlm.records import UserError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl


def hold(file: IO[Any]) -> None:
    """Keeps other processes out until the file is closed, as far as the system and the file's place know locks.

    Raises:
        BlockingIOError: Another one holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a network's file system without locks


def lock(file: IO[Any], path: Path) -> None:
    """Keeps other runs out until the file is closed.

    Raises:
        UserError: Another run holds it.
    """
    try:
        hold(file)
    except BlockingIOError:
        raise UserError(
            f"Another run is writing to {str(path)!r}: wait until it has ended, or choose another output."
        ) from None


def append_line(file: BinaryIO, name: str, line: str) -> None:
    """Adds a line to an unbuffered file, which holds all of it or none.

    Args:
        file: The file.
        name: What its owner calls it.
        line: Without its end.

    Raises:
        UserError: It cannot be written, as on a full disk.
    """
    data = (line + "\n").encode()
    place = file.seek(0, os.SEEK_END) if file.seekable() else None
    try:
        rest = memoryview(data)
        while rest:  # a full disk takes what fits, and says so at the next attempt
            rest = rest[file.write(rest) or 0 :]
    except BrokenPipeError:
        raise
    except OSError as error:
        if place is not None:
            with suppress(OSError):
                file.truncate(place)
        raise UserError(
            f"{name!r} cannot be written ({error.strerror}): make room, or choose another place, and run again."
        ) from None


class Journal:
    """A JSONL file that grows by whole lines and survives a kill: a last line that was cut short is taken off.

    Args:
        path: The file. Made if it is not there, and locked while it is open.

    Raises:
        UserError: It cannot be written, is being written by another run, or holds something that is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written ({error.strerror}): choose another folder.") from None
        try:
            lock(self._file, path)
            whole = _whole(path)
            if whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)
            self.records = list(read_journal(path))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds one line. It is with the system when this returns, so a killed process loses nothing.

        Raises:
            UserError: It cannot be written, as on a full disk. No half line stays.
        """
        append_line(self._file, str(self.path), json.dumps(record, ensure_ascii=False))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal. One that is still being written is left out.

    Raises:
        UserError: It cannot be read, or a line is no JSON object.
    """
    try:
        data = path.read_bytes()[: _whole(path)]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}): give the folder of a run.") from None
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(f"Line {number} of {str(path)!r} was not written by this command: choose another folder.")
        yield record


def _whole(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
