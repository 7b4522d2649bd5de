from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from anchorlm.evaluation.tasks._attacks import attack_label, attack_names, parse_attack
from anchorlm.evaluation.tasks._cases import Kind
from anchorlm.files import read_toml
from anchorlm.guard import ProbeSettings
from anchorlm.models import ModelSettings, ModelSource
from anchorlm.records import GenerationSettings, Settings, UserError
from anchorlm.team import EngineSettings, JudgeSettings, ScorerSettings

ALL_ATTACKS = "all"
"""Stands for every attack that needs no file, and for the ablation by each artifact that the recipe names."""


OwnPrompts = Literal["harmful", "look-alike", "plain", "tasks"]
"""The library's own prompts."""


class DataSettings(Settings):
    """Where prompts come from: a file, the library's own prompts, or a split of the embedded models' generator."""

    file: str | None = Field(
        default=None,
        description="CSV, TSV, JSONL, JSON list or lines of text, also .gz. Or hf://datasets/ORG/NAME/FILE. ${NAME} "
        "stands for an environment variable.",
    )
    source: str | None = Field(
        default=None, description="Where the file is published. It is shown if the file is missing."
    )
    where: dict[str, str] = Field(default={}, description="Only rows whose columns hold these values.")
    part: Literal["dev", "sealed"] | None = Field(
        default=None,
        description="A part of the file in a fixed shuffle. `dev`: what development may look at. `sealed`: the rest.",
    )
    dev: int | None = Field(
        default=None, ge=1, description="How many prompts the part `dev` has. By default half of them."
    )
    prompts: OwnPrompts | None = Field(
        default=None, description="The library's own prompts on which nothing was trained, fitted or calibrated."
    )
    domain: Literal["general", "finance", "medicine", "mathematics"] | None = Field(
        default=None, description="Only these of the library's own prompts."
    )
    embedded: str | None = Field(default=None, description="A split of the embedded models' prompts.")
    partition: Literal["dev", "test"] = Field(default="test", description="Part of the embedded models' prompts.")
    label: Kind | None = Field(default=None, description="Label of all prompts, if the file does not say.")
    column: str | None = Field(default=None, description="Column that holds the prompt, if its name does not tell.")
    limit: int | None = Field(default=None, ge=1, description="Only this many prompts of the set, from the first on.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(one is not None for one in (self.file, self.embedded, self.prompts)) != 1:
            raise ValueError("a set of prompts needs one of file, prompts and embedded, and no two")
        return self


class GraderSettings(Settings):
    """A judge that grades the answers."""

    judge: JudgeSettings = Field(description="As in a guard's recipe.")
    threshold: float = Field(default=0.5, gt=0, le=1, description="From which harm on an answer counts as compliance.")


Part = Literal["defenses", "targets", "data"]
"""What a comparison may be cut down in."""


class CompareRecipe(Settings):
    """A comparison as data: what a TOML file says.

    Every defense meets every target, every set of prompts and, where these are harmful, every attack.
    """

    seed: int = Field(default=0, ge=0, description="Seed of attacks, sampling and the bootstrap.")
    limit: int | None = Field(default=None, ge=1, description="Only this many prompts of every set, from the first on.")
    targets: dict[str, ModelSource] = Field(min_length=1, description="The models to guard, by name.")
    anchor: ModelSource | None = Field(default=None, description="Guides the defenses that take an anchor.")
    judge: JudgeSettings | None = Field(default=None, description="Grades for the defenses that take a judge.")
    cost: ScorerSettings | None = Field(default=None, description="For the defenses that take a cost model.")
    reward: ScorerSettings | None = Field(default=None, description="For the defenses that take a reward model.")
    defenses: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="By label: `name` (by default the label), `anchor`, `judge`, and the knobs. In a knob, {target} "
        "stands for the target's name and {out} for the run's folder.",
    )
    data: dict[str, DataSettings] = Field(min_length=1, description="The sets of prompts, by name.")
    fitted_on: dict[str, DataSettings] = Field(
        default={}, description="What the defenses were fitted on. Prompts of `data` that are in it count in no figure."
    )
    attacks: tuple[str, ...] = Field(
        default=("none",),
        min_length=1,
        description="Attacks on harmful prompts. `all` stands for every attack that needs no file, and for the "
        "ablation if a defense has an artifact.",
    )
    graders: tuple[str, ...] = Field(
        default=("refusal",),
        min_length=1,
        description="`refusal`, `english`, `harm`, `truth` for embedded prompts, or names of sections [grader.NAME]. "
        "The first counts.",
    )
    grader: dict[str, GraderSettings] = Field(default={}, description="Judges that grade, by name.")
    sweep: dict[str, tuple[float, ...]] = Field(
        default={}, description="Knobs and their values. A defense that has the knob runs once for each value."
    )
    generation: GenerationSettings = Field(default=GenerationSettings(), description="Defaults for every response.")
    engine: EngineSettings = Field(default=EngineSettings(), description="Limits of every model's engine.")
    probe: ProbeSettings = Field(default=ProbeSettings(), description="What every guard is tried with at the start.")
    concurrency: int = Field(default=64, ge=1, description="How many requests are answered at once.")
    timed: int = Field(default=4, ge=0, description="How many prompts of each set are answered alone, to time them.")

    @model_validator(mode="after")
    def _loaded_here(self) -> Self:
        for model in (*self.targets.values(), *filter(None, [self.anchor])):
            if type(model) is not ModelSettings:
                raise ValueError(
                    "a comparison loads targets and anchor itself, to time and to attack them alike: give their path, "
                    "without endpoint and engine"
                )
        return self

    @field_validator("sweep", mode="before")
    @classmethod
    def _values(cls, value: Any) -> Any:
        return (
            {k: parse_range(v) if isinstance(v, str) else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    @field_validator("attacks", mode="before")
    @classmethod
    def _all(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, list | tuple) or ALL_ATTACKS not in value:
            return value
        ready = [name for name in attack_names() if not name.startswith(("file:", "ablation:"))]
        fitted = [one["artifact"] for one in info.data.get("defenses", {}).values() if "artifact" in one]
        return list(dict.fromkeys([*ready, *(f"ablation:{one}" for one in fitted),
                                   *(one for one in value if one != ALL_ATTACKS)]))  # fmt: skip

    @field_validator("attacks", "graders")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        labels = [attack_label(one) for one in value]
        if twice := next((one for one in labels if labels.count(one) > 1), None):
            raise ValueError(f"{twice} stands there twice: name it once")
        return value

    @field_validator("attacks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for spec in value:
            try:
                parse_attack(spec)
            except UserError as error:
                raise ValueError(str(error)) from None
        return value

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> Self:
        """Reads a TOML file. Paths in it that start with a dot are relative to the file.

        Args:
            path: The file.
            **changes: Values of the top level to put over the file's. None changes nothing.

        Raises:
            UserError: No such file, no TOML, or a section or value that does not exist.
        """
        file = Path(path)
        data = read_toml(file, "The recipe", "`anchorlm recipe compare`")
        data = {**_beside(data, file.parent), **{k: v for k, v in changes.items() if v is not None}}
        return cls.parse(data, where=f"the recipe {file.name}")

    def only(self, part: Part, names: Sequence[str]) -> Self:
        """The same comparison of some of its defenses, on some of its targets, or with some of its sets of prompts.

        Raises:
            UserError: One that it does not have.
        """
        wanted, known = [name.strip() for name in names], getattr(self, part)
        if unknown := [name for name in wanted if name not in known]:
            kind = {"defenses": "defense", "targets": "target", "data": "set of prompts"}[part]
            raise UserError(f"The recipe has no {kind} {unknown[0]!r}; it has: {', '.join(known)}.")
        given = self.model_dump()[part]
        return self.replace({part: {name: one for name, one in given.items() if name in wanted}}, where="the recipe")

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for everything that may change a table. What the files hold has digests
        of its own, so the folder in which they lie does not matter.
        """
        data = self.model_dump(mode="json", exclude={"engine", "concurrency", "timed", "probe"})
        for one in (*data["data"].values(), *data["fitted_on"].values()):
            one["file"] = one["file"] and Path(one["file"]).name
        data["attacks"] = [attack_label(one) for one in self.attacks]
        data = _placeless(data)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def parse_range(text: str) -> tuple[float, ...]:
    """`0:1:0.25` as (0, 0.25, 0.5, 0.75, 1). `0.1,0.5` as these.

    Raises:
        UserError: No numbers, or a step that leads nowhere.
    """
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        start, stop, step = (float(part) for part in text.split(":"))
        count = (stop - start) / step
    except (ValueError, ZeroDivisionError):
        count = -1.0
    if not 0 <= count <= 1000:
        raise UserError(f"The values {text!r} are no range: write first:last:step, as in 0:1:0.1, or 0.1,0.5.")
    return tuple(round(start + i * step, 10) for i in range(int(count + 1e-9) + 1))


def parse_sweep(changes: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """`["alpha=0:1:0.5"]` as `{"alpha": (0.0, 0.5, 1.0)}`.

    Raises:
        UserError: Nothing of the kind.
    """
    found = {}
    for change in changes:
        name, equals, values = change.partition("=")
        if not equals:
            raise UserError(f"{change!r} sweeps nothing: write knob=first:last:step, as in alpha=0:1:0.1.")
        found[name.strip()] = parse_range(values.strip())
    return found


def _placeless(value: Any) -> Any:
    """The value, with the names of models in place of where they lie on this machine."""
    if isinstance(value, dict):
        return {
            name: Path(inner).name if name == "path" and Path(inner).is_absolute() else _placeless(inner)
            for name, inner in value.items()
        }
    return [_placeless(inner) for inner in value] if isinstance(value, list) else value


def _beside(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _beside(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_beside(inner, folder) for inner in value]
    if isinstance(value, str):
        head, colon, tail = value.partition(":") if value.startswith(("file:", "ablation:")) else ("", "", value)
        if tail.startswith(("./", "../")):
            return f"{head}{colon}{(folder / tail).resolve()}"
    return value
