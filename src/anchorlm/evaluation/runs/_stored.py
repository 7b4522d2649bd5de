from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorlm.files import read_journal
from anchorlm.records import UserError

RECIPE, MACHINE, ANSWERS, TIMINGS = "recipe.json", "machine.json", "answers.jsonl", "timings.jsonl"
"""The files of a run: what was asked for, where it ran, every answer, and every time."""

PROBES = "probes.jsonl"
"""What each guard did when it was tried, before its first answer."""

Key = tuple[str, str, str, str, str]
"""Which answer: target, defense, data, attack, case."""


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """What a run's folder says about itself.

    Raises:
        UserError: It holds no run, or what the folder says is damaged.
    """
    file = Path(folder) / RECIPE
    try:
        data = json.loads(file.read_text("utf-8"))
        if (
            _has(data, "digest", "recipe", "defenses", "data", "expected")
            and _has(data["recipe"], "seed", "targets", "data", "attacks")
            and all(_has(one, "label", "defense") for one in data["defenses"])
        ):
            return dict(data)
    except (OSError, ValueError):
        pass
    if file.exists() or (Path(folder) / ANSWERS).exists():
        raise UserError(
            f"The file {str(file)!r} is missing, damaged or no run's: choose another folder, or delete the file and "
            "give the command that began the run again, which goes on with the answers that are there."
        )
    raise UserError(f"{str(folder)!r} holds no run: make one with `anchorlm compare --out {folder}`.")


def read_answers(folder: str | Path) -> list[dict[str, Any]]:
    """Every answer of a run, in an order that does not depend on when it came.

    Raises:
        UserError: It holds no run, or one that was tampered with.
    """
    path = Path(folder) / ANSWERS
    found = {key(record): record for record in read_journal(path)} if path.exists() else {}
    return [found[one] for one in sorted(found)]


def read_timings(folder: str | Path) -> list[dict[str, Any]]:
    """Every time that was taken."""
    path = Path(folder) / TIMINGS
    return list(read_journal(path)) if path.exists() else []


def read_probes(folder: str | Path) -> list[dict[str, Any]]:
    """What guards did when they were tried. Of one that was tried again, the last."""
    path = Path(folder) / PROBES
    found = {(one["target"], one["defense"]): one for one in read_journal(path)} if path.exists() else {}
    return [found[one] for one in sorted(found)]


def read_machine(folder: str | Path) -> dict[str, Any]:
    """Where a run ran. Nothing if that is not known."""
    try:
        data = json.loads((Path(folder) / MACHINE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def key(record: Mapping[str, Any]) -> Key:
    """Which answer a record is.

    Raises:
        UserError: It is none.
    """
    try:
        if not record["grades"]:
            raise KeyError("grades")
        for name in ("kind", "prompt", "text", "finish", "usage", "trace"):
            record[name]
        return record["target"], record["defense"], record["data"], record["attack"], record["case"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The file {ANSWERS} holds a line without {error}: it was not written by this command."
        ) from None


def _has(data: Any, *names: str) -> bool:
    return isinstance(data, dict) and data.keys() >= set(names)
