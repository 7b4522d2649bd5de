from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from anchorlm.cli._offers import offer_digest
from anchorlm.files import BadRow, PromptRow, append_line, lock
from anchorlm.records import Messages, Response, UserError

_START = b'{"index": '


class Output:
    """The JSONL file, or stdout, into which answers are written as they come.

    A file that exists is continued: its whole rows are kept, but for those that were
    refused because a model failed, and a last line that a kill cut short is taken off. It is
    locked, so no other run writes between the lines.

    Args:
        place: The file. `-` is stdout.
        rows: Everything that the input holds, against which what is already there is compared.
        recipe: Digest of the recipe that answers.
        overwrite: Start again. What is there stays until the first answer is written.
        trace: Write what the defense decided, too.

    Attributes:
        done: Indices of the rows that are there already.
        pipeline: Digest of the weights and settings that answer, where the defense knows one: labels are bound to it.

    Raises:
        UserError: The file belongs to another input or recipe, is being written by another run, or cannot be written.
    """

    def __init__(
        self,
        place: str,
        rows: Sequence[PromptRow | BadRow],
        recipe: str,
        *,
        overwrite: bool = False,
        trace: bool = False,
    ) -> None:
        self._recipe = recipe
        self._trace = trace
        self.pipeline: str | None = None
        self.done: frozenset[int] = frozenset()
        self._place = place
        self._file: BinaryIO | None = None
        self._outdated = False  # whether what is there is to be cleared
        self._failed: set[bytes] = set()  # lines of answers that came of a failure, to be given again
        if place == "-":
            return
        path = Path(place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            if path.is_file():
                lock(self._file, path)
                self.done = frozenset() if overwrite else self._resume(path, rows)
                self._outdated = overwrite
                if self._failed:
                    self._file = self._without_failures(self._file, path)
        except (OSError, UserError) as error:
            if self._file is not None:
                self._file.close()
            if isinstance(error, UserError):
                raise
            why = error.strerror or error
            raise UserError(f"{place!r} cannot be written ({why}): choose another output.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            with self._file:
                if kind is None:
                    self._clear()

    def write(self, row: PromptRow, response: Response) -> None:
        """Writes one answer, at once.

        Raises:
            UserError: It cannot be written, as on a full disk. No half line stays.
        """
        record: dict[str, Any] = {"index": row.index}
        if row.id is not None:
            record["id"] = row.id
        record[_field(row.prompt)] = row.prompt
        if (offered := offer_digest(row)) is not None:
            record["offer"] = offered
        record |= {
            "response": response.text,
            "finish_reason": response.finish_reason,
            "usage": asdict(response.usage),
            "recipe": self._recipe,
        }
        if response.calls:
            record["tool_calls"] = [call.data for call in response.calls]
        if response.failed:
            record["failed"] = True
        if self.pipeline is not None:
            record["pipeline"] = self.pipeline
        if self._trace:
            record["trace"] = [{"kind": decision.kind, **decision.data} for decision in response.trace]
        self._clear()
        line = json.dumps(record, ensure_ascii=False)
        if self._file is not None:
            append_line(self._file, self._place, line)
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(f"Standard output cannot be written ({error.strerror}): choose an --output.") from None

    def _clear(self) -> None:
        if self._file is not None and self._outdated:
            self._file.truncate(0)
        self._outdated = False

    def _resume(self, path: Path, rows: Sequence[PromptRow | BadRow]) -> frozenset[int]:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        done: set[int] = set()
        failed: set[int] = set()
        for number, line in enumerate(data[:whole].splitlines(keepends=True), start=1):
            record = self._checked(line, number, path, rows, done)
            done.add(record["index"])
            if record.get("failed"):
                self._failed.add(line)
                failed.add(record["index"])
        if whole < len(data):
            if not (data[whole:].startswith(_START) or _START.startswith(data[whole:])):
                raise _foreign(data[:whole].count(b"\n") + 1, path)
            with path.open("r+b") as file:
                file.truncate(whole)
        return frozenset(done - failed)

    def _without_failures(self, old: BinaryIO, path: Path) -> BinaryIO:
        """The file without its failed rows, replaced as a whole and locked again: a kill leaves the old or the new."""
        kept = [line for line in path.read_bytes().splitlines(keepends=True) if line not in self._failed]
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            new.write_bytes(b"".join(kept))
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        old.close()
        file = path.open("ab", buffering=0)
        lock(file, path)
        return file

    def _checked(
        self, line: bytes, number: int, path: Path, rows: Sequence[PromptRow | BadRow], done: set[int]
    ) -> dict[str, Any]:
        """A row that is already there."""
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        index = record.get("index") if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(index, int) or "response" not in record or index in done:
            raise _foreign(number, path)
        if record.get("recipe") != self._recipe:
            raise UserError(
                f"{str(path)!r} was written with another recipe or other settings: choose another output, or start it "
                "again with --overwrite."
            )
        row = rows[index] if 0 <= index < len(rows) else None
        if not isinstance(row, PromptRow) or record.get(_field(row.prompt)) != row.prompt:
            raise UserError(
                f"Row {index} of {str(path)!r} answers another prompt than the input has there: choose another output, "
                "or start it again with --overwrite."
            )
        if record.get("offer") != offer_digest(row):
            raise UserError(
                f"Row {index} of {str(path)!r} was answered with other tools than the input has there: choose another "
                "output, or start it again with --overwrite."
            )
        return record


def _foreign(number: int, path: Path) -> UserError:
    return UserError(
        f"Line {number} of {str(path)!r} was not written by this command: choose another output, or start again with "
        "--overwrite."
    )


def _field(prompt: Messages | str) -> str:
    return "prompt" if isinstance(prompt, str) else "messages"
