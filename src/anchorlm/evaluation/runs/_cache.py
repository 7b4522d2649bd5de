from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorlm.files import Journal, cache_folder
from anchorlm.records import Request, Response, Usage, UserError, prompt_key

if TYPE_CHECKING:
    from anchorlm.engine import LocalEngine


class UndefendedCache:
    """What a target answers by itself, kept between runs: every comparison asks for it again.

    Answers are found by the target's weights, the prompt and the settings of generation. Where another run holds the
    file, or it cannot be written, nothing is kept.

    Args:
        target: The engine of the undefended target, without an attack below it.
        folder: Where caches lie.

    Attributes:
        hits: How many answers were found.
    """

    def __init__(self, target: LocalEngine, folder: Path | None = None) -> None:
        from anchorlm.models import identity

        self.hits = 0
        name = _digest(identity(target.model))
        self._journal: Journal | None = None
        place = (folder or cache_folder()) / "undefended"
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(place / f"{name}.jsonl")
        except (OSError, UserError):
            self._known: dict[str, dict[str, Any]] = {}
        else:
            self._known = {record["key"]: record for record in self._journal.records if "key" in record}

    def get(self, request: Request) -> Response | None:
        """The answer to a request, if it was given before."""
        found = self._known.get(_key(request))
        if found is None:
            return None
        self.hits += 1
        return Response(found["text"], tuple(found["tokens"]), found["finish"], Usage(**found["usage"]), ())

    def put(self, request: Request, response: Response) -> None:
        """Keeps an answer."""
        if self._journal is None or response.finish_reason == "refusal":
            return
        record: dict[str, Any] = {
            "key": _key(request),
            "text": response.text,
            "tokens": response.token_ids,
            "finish": response.finish_reason,
            "usage": asdict(response.usage),
        }
        self._known[record["key"]] = record
        self._journal.write(record)

    def close(self) -> None:
        """Lets other runs have the file."""
        if self._journal is not None:
            self._journal.__exit__(None, None, None)


def _key(request: Request) -> str:
    return _digest([prompt_key(request.prompt), request.generation.identity()])


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]
