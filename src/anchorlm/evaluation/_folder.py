from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch

from anchorlm.evaluation._cases import Case, digest
from anchorlm.evaluation._contestants import Contestant, Pool, contestants
from anchorlm.evaluation._overlaps import overlaps
from anchorlm.evaluation._recipe import CompareRecipe
from anchorlm.records import UserError, read_journal

RECIPE, MACHINE, ANSWERS, TIMINGS = "recipe.json", "machine.json", "answers.jsonl", "timings.jsonl"
"""The files of a run: what was asked for, where it ran, every answer, and every time."""

ARTIFACTS = "artifacts"
"""Where a run keeps what was fitted for it."""

Key = tuple[str, str, str, str, str]
"""Which answer: target, defense, data, attack, case."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that a run compares.

    Attributes:
        recipe: What was asked for.
        contestants: Its defenses, with what is swept spread out.
        cases: The prompts by target and name of their set.
    """

    recipe: CompareRecipe
    contestants: Sequence[Contestant]
    cases: Mapping[str, Mapping[str, Sequence[Case]]]

    @classmethod
    def of(cls, recipe: CompareRecipe, pool: Pool) -> Self:
        """What a recipe compares, with its prompts read.

        Raises:
            UserError: A mistake in the recipe or in its files.
        """
        cases = {
            target: {name: pool.cases(one, target, recipe.limit) for name, one in recipe.data.items()}
            for target in recipe.targets
        }
        return cls(recipe, contestants(recipe), cases)

    def attacks(self, case: Case) -> Sequence[str]:
        """What is done to a prompt: the attacks where it is harmful, nothing elsewhere."""
        return self.recipe.attacks if case.kind == "harmful" else ("none",)

    @property
    def keys(self) -> set[Key]:
        """The answers that there will be."""
        return {
            (target, one.label, name, attack, case.id)
            for target, sets in self.cases.items()
            for name, cases in sets.items()
            for case in cases
            for attack in self.attacks(case)
            for one in self.contestants
        }

    @property
    def expected(self) -> int:
        """How many answers there will be."""
        return len(self.keys)

    @property
    def data(self) -> dict[str, Any]:
        """As plain JSON data, from which tables can be made without a model."""
        return {
            "digest": self.recipe.digest,
            "recipe": self.recipe.model_dump(mode="json"),
            "expected": self.expected,
            "defenses": [
                {"label": one.label, "defense": one.defense, "knobs": dict(one.knobs), "swept": one.swept}
                for one in self.contestants
            ],
            "data": {
                target: {
                    name: {"digest": digest(cases), "n": len(cases), "kinds": sorted({case.kind for case in cases})}
                    for name, cases in sets.items()
                }
                for target, sets in self.cases.items()
            },
        }


def prepare(folder: str | Path, setting: Setting, pool: Pool) -> Path:
    """Makes the folder of a run, or takes the one of the same run that was stopped; nothing in another is touched.

    Raises:
        UserError: It holds something else, a run of another recipe or of other prompts, or one that is damaged.
    """
    place = Path(folder)
    new = json.dumps(setting.data | {"overlaps": _overlaps(setting, pool)}, indent=1, ensure_ascii=False) + "\n"
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = place / RECIPE
        if file.exists():
            old = read_recipe(place)
            for name, what in (("digest", "of another recipe"), ("data", "on other prompts")):
                if old[name] != json.loads(new)[name]:
                    raise UserError(f"{str(folder)!r} holds a run {what}: choose another folder for --out.")
        else:
            require_own(place)
            if not {key(record) for record in read_answers(place)} <= setting.keys:
                raise UserError(f"{str(folder)!r} holds answers of another recipe: choose another folder for --out.")
        _write(file, new)
        _write(place / MACHINE, json.dumps(_machine(setting, pool), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error.strerror}): choose another folder.") from None
    return place


def require_own(folder: Path) -> None:
    """Refuses a folder that holds something else than a run, or than what was fitted for one.

    Raises:
        UserError: It does.
    """
    if not folder.is_dir() or (folder / RECIPE).exists() or (folder / ANSWERS).exists():
        return  # answers without a recipe are what is left where a damaged recipe.json was deleted
    if any(one.name != ARTIFACTS and not one.name.startswith(RECIPE) for one in folder.iterdir()):
        raise UserError(f"{str(folder)!r} holds something else than a run: choose another folder for --out.")


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """What a run's folder says about itself.

    Raises:
        UserError: It holds no run, or what the folder says is damaged.
    """
    file = Path(folder) / RECIPE
    try:
        data = json.loads(file.read_text("utf-8"))
        if _has(data, "digest", "recipe", "defenses", "data", "expected") and _has(
            data["recipe"], "seed", "targets", "data", "attacks"
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


def read_machine(folder: str | Path) -> dict[str, Any]:
    """Where a run ran; nothing if that is not known."""
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
        return record["target"], record["defense"], record["data"], record["attack"], record["case"]
    except KeyError as error:
        raise UserError(
            f"The file {ANSWERS} holds a line without {error}: it was not written by this command."
        ) from None


def _has(data: Any, *names: str) -> bool:
    return isinstance(data, dict) and data.keys() >= set(names)


def _write(file: Path, text: str) -> None:
    """Replaces a file as a whole, if it changes at all: whoever is killed here leaves the old one or the new one."""
    if file.exists() and file.read_bytes() == text.encode():
        return
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8", newline="\n")
    os.replace(new, file)


def _overlaps(setting: Setting, pool: Pool) -> list[dict[str, Any]]:
    """Prompts that fitting data and test data, or two test sets, share."""
    target = next(iter(setting.recipe.targets))
    fitted = {name: pool.cases(one, target, None) for name, one in setting.recipe.fitted_on.items()}
    return [asdict(one) for one in overlaps({**fitted, **setting.cases[target]})]


def _machine(setting: Setting, pool: Pool) -> dict[str, Any]:
    """Versions, machine, and the fitted artifacts by their ids."""
    artifacts = {}
    for target in setting.recipe.targets:
        for one in setting.contestants:
            path = pool.knobs(target, one).get("artifact")
            if isinstance(path, str):
                file = Path(path) / "artifact.json"
                artifacts[f"{target} {one.label}"] = (
                    json.loads(file.read_text("utf-8")).get("id") if file.exists() else None
                )
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
        "artifacts": artifacts,
    }
