from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorlm.guard import Recipe, put
from anchorlm.records import UserError

REFUSAL_JUDGE = "refusal"


def make_recipe(
    file: Path | None,
    *,
    target: str | None = None,
    defense: str | None = None,
    anchor: str | None = None,
    judge: str | None = None,
    changes: Sequence[str] = (),
) -> Recipe:
    """The recipe that a command line describes: a file, options that replace its sections, and single values.

    Args:
        file: The TOML file. Without one, `target` must be given.
        target: Replaces the section of this name, as do the others.
        defense: Name of a defense. Alignbeam where neither file nor option says.
        anchor: Hub id or folder.
        judge: Hub id or folder of a rubric judge's model, or `refusal`.
        changes: Of the form `a.b=value`. The value is read as TOML, and as a plain text where it is none.

    Raises:
        UserError: Nothing to guard, or what `Recipe.load` raises.
    """
    sections: dict[str, Any] = {}
    if target is not None:
        sections["target"] = {"path": _place(target)}
    if anchor is not None:
        sections["anchor"] = {"path": _place(anchor)}
    if judge is not None:
        sections["judge"] = (
            {"kind": "refusal"} if judge == REFUSAL_JUDGE else {"kind": "rubric", "model": {"path": _place(judge)}}
        )
    if defense is not None:
        sections["defense"] = {"name": defense}
    values = parse_changes(changes)
    if file is not None:
        return Recipe.load(file, {**sections, **values})
    if target is None:
        raise UserError("There is nothing to guard: give --recipe FILE, or --target MODEL with --defense NAME.")
    data: dict[str, Any] = {"defense": {"name": "alignbeam"}, **sections}
    for name, value in values.items():
        put(data, name, value)
    return Recipe.parse(data, where="the command line")


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """`["defense.alpha=0.7"]` as `{"defense.alpha": 0.7}`.

    Raises:
        UserError: A change without a name or an equals sign.
    """
    parsed = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{change!r} sets nothing: write name=value, as in defense.alpha=0.7.")
        parsed[name.strip()] = parse_value(text.strip())
    return parsed


def parse_value(text: str) -> Any:
    """A value as TOML reads it, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def digest(recipe: Recipe) -> str:
    """Twelve hexadecimal digits that stand for everything in a recipe that may change an answer.

    A folder of weights is known by their sizes and times, so a model that was tuned again in its place is another.
    """
    data = recipe.model_dump(mode="json", exclude={"engine", "serve"})
    if "system" in recipe.serve:
        data["system"] = recipe.serve["system"]
    data["weights"] = {path: _weights(Path(path)) for path in sorted(_paths(data)) if Path(path).is_dir()}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _paths(data: Any) -> set[str]:
    """Every `path` in nested settings."""
    if isinstance(data, dict):
        own = {data["path"]} if isinstance(data.get("path"), str) else set()
        return own.union(*map(_paths, data.values()))
    return set().union(*map(_paths, data)) if isinstance(data, list) else set()


def _weights(folder: Path) -> list[tuple[str, int, int]]:
    files = sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*config.json")))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _place(model: str) -> str:
    """A folder is meant from where the command runs, not from where a recipe lies."""
    return str(Path(model).resolve()) if Path(model).exists() else model
