"""The prompts that a recipe's sets name: files of the user's, halves of published sets, and the library's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from random import Random

from anchorlm.evaluation.runs._recipe import DataSettings, OwnPrompts
from anchorlm.evaluation.tasks._cases import SEED, Case, Half, Kind, load_cases
from anchorlm.records import UserError, as_messages

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_OWN: Mapping[str, tuple[str, str, Kind]] = {
    "harmful": ("pairs", "harmful", "harmful"),
    "look-alike": ("pairs", "safe", "look-alike"),
    "plain": ("plain", "prompt", "harmless"),
    "tasks": ("tasks", "prompt", "harmless"),
}
"""The library's own prompts: file, field and kind. The tasks are harmless prompts: nothing says what solves them."""


def read_set(name: str, settings: DataSettings) -> list[Case]:
    """The prompts of a set that is no embedded one. What is cut or the library's own comes shuffled, always the same.

    Args:
        name: Of the set, for errors.
        settings: Where it comes from.

    Raises:
        UserError: It cannot be read, or holds no such prompts.
    """
    if settings.prompts is not None:
        cases = own_prompts(settings.prompts, settings.domain)
    else:
        place = expanded(str(settings.file))
        if place is None or not _is_there(place):
            raise UserError(f"The set {name} is missing: {_wanted(name, settings)}.")
        half = None if settings.part is None else Half(settings.part, settings.dev)
        cases = load_cases(place, kind=settings.label, column=settings.column, where=settings.where, half=half)
    if not cases:
        raise UserError(f"Nothing is left of the set {name} for its part {settings.part}: make dev smaller.")
    return cases


def own_prompts(prompts: OwnPrompts, domain: str | None) -> list[Case]:
    """The library's own prompts, of the part that is held back: nothing was trained, fitted or calibrated on them.

    Raises:
        UserError: There are none of this domain.
    """
    file, field, kind = _OWN[prompts]
    text = files("anchorlm.steering").joinpath("prompts", f"{file}.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    cases = [
        Case(f"{prompts}-{number}", as_messages(row[field]), kind, row.get("category"))
        for number, row in enumerate(rows)
        if row["part"] == "held" and domain in (None, row.get("domain"))
    ]
    if not cases:
        raise UserError(f'There are no prompts "{prompts}" of the domain {domain!r}: leave the domain out.')
    Random(SEED).shuffle(cases)
    return cases


def require_files(sets: Mapping[str, DataSettings]) -> None:
    """Says of all files of a recipe at once which are not there, before anything is read.

    Raises:
        UserError: Some are not.
    """
    missing = {
        name: _wanted(name, one)
        for name, one in sets.items()
        if one.file is not None and not ((place := expanded(one.file)) and _is_there(place))
    }
    if missing:
        rest = ",".join(name for name in sets if name not in missing)
        without = f", or leave them out with --data {rest}" if rest else ""
        raise UserError(f"Sets of the recipe are missing: {'; '.join(missing.values())}{without}.")


def expanded(file: str) -> str | None:
    """A path with its environment variables, written as `${NAME}`, filled in. None where one is not set."""
    names = _VARIABLE.findall(file)
    if any(not os.environ.get(name) for name in names):
        return None
    return str(Path(_VARIABLE.sub(lambda found: os.environ[found[1]], file)).expanduser()) if names else file


def _is_there(place: str) -> bool:
    return place.startswith("hf://") or Path(place).exists()


def _wanted(name: str, settings: DataSettings) -> str:
    """What is to be done about a file that is not there."""
    file = str(settings.file)
    origin = f" from {settings.source}" if settings.source else ""
    if (place := expanded(file)) is None:
        variable = next(found for found in _VARIABLE.findall(file) if not os.environ.get(found))
        return f"for {name} set {variable}, so {file} is the file{origin}"
    return f"for {name} put the file{origin} at {place}"
