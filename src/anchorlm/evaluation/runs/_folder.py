from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anchorlm.evaluation.runs._contestants import Pool
from anchorlm.evaluation.runs._exclusion import artifact_instruments
from anchorlm.evaluation.runs._overlaps import fitted_overlaps, overlaps, together
from anchorlm.evaluation.runs._setting import Setting
from anchorlm.evaluation.runs._stored import ANSWERS, MACHINE, RECIPE, read_answers, read_machine, read_recipe
from anchorlm.evaluation.tasks._attacks import parse_attack
from anchorlm.models import ModelSettings
from anchorlm.records import UserError
from anchorlm.team import FirstJudgeSettings, JudgeSettings, ScorerSettings

_log = logging.getLogger("anchorlm")

ARTIFACTS = "artifacts"
"""Where a run keeps what was fitted for it."""


def check(folder: str | Path, setting: Setting, pool: Pool) -> None:
    """Refuses a folder in which this run cannot go on, before anything in it is touched.

    Raises:
        UserError: It holds something else, a run of another recipe, on other prompts or of models that have changed
            since, or one that is damaged.
    """
    place = Path(folder)
    try:
        if not (place / RECIPE).exists():
            require_own(place)
            if any(record.get("run") != setting.run for record in read_answers(place)):
                raise UserError(f"{str(folder)!r} holds answers of another recipe: choose another folder for --out.")
            return
        old, new = read_recipe(place), json.loads(json.dumps(setting.data))
        whats = {"digest": "of another recipe", "data": "on other prompts", "attacks": "under attacks of another file"}
        for name, what in whats.items():
            if old.get(name, {}) != new[name]:
                raise UserError(f"{str(folder)!r} holds a run {what}: choose another folder for --out.")
        was, now = old.get("weights", {}), weights(setting, pool)
        if changed := next((name for name in now if was.get(name, now[name]) != now[name]), None):
            raise UserError(
                f"The {changed} has changed since the run in {str(folder)!r} began, and its old and new answers must "
                "not mix: choose another folder for --out."
            )
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read ({error.strerror}): choose another folder.") from None


def prepare(folder: str | Path, setting: Setting, pool: Pool) -> Path:
    """Makes the folder of a run, or takes the one of the same run that was stopped, which `check` has found in order.

    Raises:
        UserError: It cannot be written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = place / RECIPE
        known = read_recipe(place).get("weights", {}) if file.exists() else {}  # what is gone now may come back changed
        about = setting.data | {
            "overlaps": _overlaps(setting, pool),
            "weights": known | weights(setting, pool),
            "instruments": {one.label: sorted(artifact_instruments(pool.fitted(one))) for one in setting.contestants},
        }
        _write(file, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        _write(place / MACHINE, json.dumps(_machines(place, _machine(setting, pool)), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error.strerror}): choose another folder.") from None
    return place


def weights(setting: Setting, pool: Pool) -> dict[str, Any]:
    """What stands for every model and artifact on this disk: a model's files with sizes and times, an artifact's id.

    Raises:
        UserError: A damaged artifact, or what `Pool.located` raises.
    """
    roles = (role for one in setting.contestants for role in (one.anchor, one.judge, one.cost, one.reward))
    graders = (one.judge for one in setting.recipe.grader.values())
    found: dict[str, Any] = {}
    for model in _models(*setting.recipe.targets.values(), *graders, *roles):
        for said, path in ((model.path, pool.located(model).path), (model.adapter, model.adapter)):
            if path is not None and Path(path).is_dir():
                found[f"model {said}"] = _files(Path(path))
    ids = {f"artifact of {name}": _artifact_id(folder) for name, folder in artifacts(setting, pool).items()}
    return found | {name: one for name, one in ids.items() if one is not None}


def artifacts(setting: Setting, pool: Pool, target: str | None = None) -> dict[str, Path]:
    """Folders of the artifacts that defenses and attacks use, around one target or all, by target and label."""
    targets = [target] if target is not None else list(setting.recipe.targets)
    found = {
        f"{each} {one.label}" + ("" if knob == "artifact" else f" ({knob})"): Path(place)
        for each in targets
        for one in setting.contestants
        for knob, place in pool.artifacts(each, one).items()
    }
    attacks = {spec: parse_attack(spec).ablation for spec in setting.recipe.attacks}
    return found | {
        f"{each} {spec}": Path(pool.placed(artifact, each))
        for each in targets
        for spec, artifact in attacks.items()
        if artifact is not None
    }


def require_own(folder: Path) -> None:
    """Refuses a folder that holds something else than a run, or than what was fitted for one.

    Raises:
        UserError: It does.
    """
    if not folder.is_dir() or (folder / RECIPE).exists() or (folder / ANSWERS).exists():
        return  # answers without a recipe are what is left where a damaged recipe.json was deleted
    if any(one.name != ARTIFACTS and not one.name.startswith(RECIPE) for one in folder.iterdir()):
        raise UserError(f"{str(folder)!r} holds something else than a run: choose another folder for --out.")


def _machines(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Where a run runs, and where it ran before it was resumed elsewhere."""
    before = read_machine(folder)
    earlier = before.pop("earlier", [])
    if before and before != now:
        earlier.append(before)
    return now | ({"earlier": earlier} if earlier else {})


def _write(file: Path, text: str) -> None:
    """Replaces a file as a whole, if it changes at all: a kill leaves the old one or the new one."""
    if file.exists() and file.read_bytes() == text.encode():
        return
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8", newline="\n")
    os.replace(new, file)


def _overlaps(setting: Setting, pool: Pool) -> list[dict[str, Any]]:
    """Prompts that fitting data and test data, or two test sets, share, for every target."""
    found = {}
    for target, sets in setting.cases.items():
        fitted = {name: pool.cases(name, one, target, None) for name, one in setting.recipe.fitted_on.items()}
        found[target] = overlaps(sets, fitted) + fitted_overlaps(artifacts(setting, pool, target), sets)
    merged = together(found)
    for one in merged:
        if one.fitted:
            _log.warning("%d prompts of %s are, or nearly, in %s: the figures of %s leave them out.",
                         one.equal + one.near, one.second, one.first, ", ".join(one.targets))  # fmt: skip
    return [asdict(one) for one in merged]


def _models(
    *settings: ModelSettings | JudgeSettings | FirstJudgeSettings | ScorerSettings | None,
) -> Iterator[ModelSettings]:
    """The models behind some roles."""
    for one in settings:
        if isinstance(one, ModelSettings):
            yield one
        elif isinstance(one, ScorerSettings):
            yield from _models(one.model, one.judge)
        elif one is not None:
            yield from _models(one.model, getattr(one, "first", None))


def _files(folder: Path) -> list[list[str | int]]:
    """Everything in a model's folder that may change an answer. Of an adapter, that of its base, too."""
    found = sorted(file for end in ("safetensors", "bin", "json", "jinja") for file in folder.glob(f"*.{end}"))
    own: list[list[str | int]] = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]
    try:
        base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        below = next((place for place in (folder / base, Path(base)) if place.is_dir()), None)
    except (OSError, ValueError, KeyError, TypeError):
        return own  # no adapter, or one of which loading says what is wrong
    return own if below is None else own + _files(below)


def _artifact_id(folder: Path) -> str | None:
    """The id in an artifact's folder. None where there is none."""
    file = folder / "artifact.json"
    if not file.exists():
        return None
    try:
        return str(json.loads(file.read_text("utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"The artifact in {str(folder)!r} is damaged: make it again.") from None


def _machine(setting: Setting, pool: Pool) -> dict[str, Any]:
    """Versions, machine, and the fitted artifacts by their ids."""
    import torch

    packages = ("anchorlm", "torch", "transformers", "tokenizers")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
        "artifacts": {name: _artifact_id(folder) for name, folder in artifacts(setting, pool).items()},
    }
