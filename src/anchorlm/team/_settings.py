from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from anchorlm.models import EndpointSettings, ModelSource
from anchorlm.records import Settings


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
