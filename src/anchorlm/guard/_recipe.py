from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from anchorlm.guard._probe import ProbeSettings
from anchorlm.models import EndpointSettings, ModelSettings, ModelSource
from anchorlm.records import GenerationSettings, Settings, UserError, read_toml


class EngineSettings(Settings):
    """How much a model's engine may hold at once."""

    max_rows: int = Field(default=256, ge=1, description="Sequences.")
    max_tokens: int = Field(default=65_536, ge=1, description="Key/value positions: rows times the longest row.")
    prefill_tokens: int = Field(default=2_048, ge=1, description="Prompt tokens that one forward reads.")


class JudgeSettings(Settings):
    """Who grades candidates."""

    kind: Literal["rubric", "classifier", "refusal"] = Field(default="rubric", description="An LLM that grades by a "
        "rubric, a sequence classifier, or the refusal matcher (which knows refusals, not harm).")  # fmt: skip
    model: ModelSource | None = Field(default=None, description="The judging model; a path will do.")
    options: dict[str, Any] = Field(default_factory=dict, description="What this kind of judge can be told.")

    @model_validator(mode="after")
    def _has_model(self) -> Self:
        if (self.model is None) != (self.kind == "refusal"):
            raise ValueError("a rubric or classifier judge needs a model, and the refusal matcher takes none")
        if self.kind == "classifier" and isinstance(self.model, EndpointSettings):
            raise ValueError("a classifier is loaded here: leave endpoint out, or take kind = 'rubric'")
        return self


class ScorerSettings(Settings):
    """What a text costs, or what it is worth."""

    kind: Literal["classifier", "rubric", "judge", "remote"] = Field(default="classifier", description="A sequence "
        "classifier, an LLM with a rubric, a judge as a cost, or a scorer behind an HTTP address.")  # fmt: skip
    model: ModelSource | None = Field(default=None, description="The classifier or LLM; a path will do.")
    judge: JudgeSettings | None = Field(default=None, description="The judge that is turned into a cost.")
    url: str | None = Field(default=None, description="Address of the remote scorer.")
    options: dict[str, Any] = Field(default_factory=dict, description="What this kind of scorer can be told.")

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        given = {"classifier": self.model, "judge": self.judge, "remote": self.url}
        kind = "classifier" if self.kind == "rubric" else self.kind
        if {each for each, source in given.items() if source is not None} != {kind}:
            raise ValueError("a classifier needs a model, a judge a judge, a remote scorer a url, and none the others")
        if self.kind == "classifier" and isinstance(self.model, EndpointSettings):
            raise ValueError("a classifier is loaded here: leave endpoint out, or take kind = 'rubric' or 'remote'")
        return self


class Recipe(Settings):
    """Everything that makes a guard, as data: what a TOML file says.

    Sections: `target`, `anchor`, `judge`, `cost`, `reward`, `defense` (its `name` and its knobs), `generation`,
    `engine`, `probe`, `serve`. A model may be given as a path alone.
    """

    target: ModelSource = Field(description="The model to guard.")
    anchor: ModelSource | None = Field(default=None, description="A small aligned model, of any family.")
    judge: JudgeSettings | None = Field(default=None, description="Who grades candidates.")
    cost: ScorerSettings | None = Field(default=None, description="What a text costs; above 0 is unsafe.")
    reward: ScorerSettings | None = Field(default=None, description="What a text is worth.")
    defense: dict[str, Any] = Field(description="`name` and knobs of the defense.")
    generation: GenerationSettings = Field(default=GenerationSettings(), description="Defaults for every request.")
    engine: EngineSettings = Field(default=EngineSettings(), description="Limits of every model's engine.")
    probe: ProbeSettings = Field(default=ProbeSettings(), description="What the guard is tried with at the start.")
    serve: dict[str, Any] = Field(default_factory=dict, description="What `anchorlm serve` lets clients change.")

    @field_validator("cost", "reward", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("defense", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("defense")
    @classmethod
    def _has_name(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("the section defense must say the name of one, such as alignbeam")
        return value

    @property
    def knobs(self) -> dict[str, Any]:
        """What the section `defense` says besides its name."""
        return {name: value for name, value in self.defense.items() if name != "name"}

    @property
    def models(self) -> list[tuple[str, ModelSettings]]:
        """Every model that is named, and for what."""
        sources = [(part, getattr(self, part)) for part in ("target", "anchor", "judge", "cost", "reward")]
        named = [
            (part, source if isinstance(source, ModelSettings) else getattr(source, "model", None))
            for part, source in sources
        ]
        return [(part, model) for part, model in named if model is not None]

    @classmethod
    def load(cls, path: str | Path, changes: dict[str, Any] | None = None) -> Self:
        """Reads a TOML file; paths of folders in it that start with a dot are relative to the file.

        Args:
            path: The file.
            changes: Values to put over the file's, by dotted name (`defense.alpha`).

        Raises:
            UserError: No such file, no TOML, or a section or value that does not exist.
        """
        file = Path(path)
        data = read_toml(file, "The recipe", "what the command anchorlm zoo recipe a-finance prints")
        for name, value in (changes or {}).items():
            put(data, name, value)
        for section in map(data.get, ("target", "anchor", "judge", "cost", "reward", "defense")):
            _resolve(section, file.parent)
        for name in ("target", "anchor", "cost", "reward"):
            if isinstance(data.get(name), str):
                data[name] = _beside(data[name], file.parent)
        return cls.parse(data, where=f"the recipe {file.name}")


_ALONE = {"defense": "name", "cost": "model", "reward": "model", "target": "path", "anchor": "path", "model": "path"}
"""What a text alone stands for in a section."""


def put(data: dict[str, Any], name: str, value: Any) -> None:
    """Sets a value of a recipe by its dotted name; a section that was a path or a name alone opens up.

    Raises:
        UserError: A part of the name is not a section.
    """
    *parents, last = name.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if isinstance(inner, str) and parent in _ALONE:
            inner = {_ALONE[parent]: inner}
            data[parent] = inner
        if not isinstance(inner, dict):
            raise UserError(f"{name!r} cannot be set: {parent!r} is not a section of the recipe.")
        data = inner
    data[last] = value


_PLACES = ("path", "adapter", "model", "chat_template", "artifact", "evidence", "judge", "critic", "calibration")
"""Values that name a file, a folder, or a section that does."""


def _resolve(section: Any, folder: Path) -> None:
    if isinstance(section, dict):
        for name in (
            "path",
            "adapter",
            "model",
            "chat_template",
            "artifact",
            "evidence",
            "judge",
            "critic",
            "calibration",
            "tokenizer",
            "key_file",
        ):
            if isinstance(section.get(name), str):
                section[name] = _beside(section[name], folder)
            _resolve(section.get(name), folder)


def _beside(path: str, folder: Path) -> str:
    return str((folder / path).resolve()) if path.startswith("./") or path.startswith("../") else path
