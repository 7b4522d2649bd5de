from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from anchorlm.files import Journal
from anchorlm.records import Messages, prompt_key


class Kept:
    """What a calibration has read and generated so far, in a file next to the artifact: a killed one goes on there.

    Args:
        path: The file. None: nothing outlives the process.
        of: What it belongs to. A file of something else is begun again.

    Raises:
        UserError: The file cannot be written, or another run writes to it.
    """

    def __init__(self, path: Path | None, of: str) -> None:
        self._stack = ExitStack()
        self._known: dict[tuple[str, ...], Any] = {}
        self._journal: Journal | None = None
        self._path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with Journal(path) as journal:
            mine = journal.records[:1] == [{"of": of}]
        if not mine:
            path.unlink()
        self._journal = self._stack.enter_context(Journal(path))
        if not mine:
            self._journal.write({"of": of})
        self._known = {tuple(record["key"]): record["value"] for record in self._journal.records[1:]}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._path is not None and kind is None:
            self._path.unlink(missing_ok=True)

    def get(self, *key: str) -> Any:
        """What is known, or None."""
        return self._known.get(key)

    def put(self, value: Any, *key: str) -> Any:
        """Keeps a value, and gives it back."""
        self._known[key] = value
        if self._journal is not None:
            self._journal.write({"key": list(key), "value": value})
        return value


def short_key(prompt: Messages | str, *more: object) -> str:
    """A digest of a prompt, and of what else decides."""
    return hashlib.sha256(repr([prompt_key(prompt), *more]).encode()).hexdigest()[:24]
