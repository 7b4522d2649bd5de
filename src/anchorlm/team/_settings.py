from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from anchorlm.models import EndpointSettings, ModelSource, VLLMSettings
from anchorlm.records import Place, Settings


def _check_here(model: ModelSource | None) -> None:
    for kind, name in ((EndpointSettings, "endpoint"), (VLLMSettings, "engine")):
        if isinstance(model, kind):
            raise ValueError(f"a classifier is loaded here: leave {name} out, or take kind = 'rubric' or 'guard'")


class EngineSettings(Settings):
    """How much a model's engine may hold at once."""

    max_rows: int = Field(default=256, ge=1, description="Sequences at once.")
    max_tokens: int = Field(
        default=65_536,
        ge=1,
        description="Positions in memory: rows times the longest row, and what is kept of earlier rows.",
    )
    prefill_tokens: int = Field(
        default=2_048, ge=1, description="Tokens, padding included, that one forward pass reads from prompts."
    )
    prefix_tokens: int = Field(
        default=8_192,
        ge=0,
        description="Positions of what was read lately that are kept for other rows. 0 keeps none.",
    )


class _JudgeKind(Settings):
    """What a judge is."""

    kind: Literal["rubric", "guard", "classifier", "refusal", "python"] = Field(default="rubric", description="An LLM "
        "that grades by a rubric, a guard model such as Llama Guard, a sequence classifier, the refusal matcher (which "
        "knows refusals, not harm), or a Python function.")  # fmt: skip
    model: ModelSource | None = Field(default=None, description="The judging model; a path will do.")
    function: str | None = Field(
        default=None, description="The Python function, as module:name; only with --allow-code."
    )
    options: Annotated[dict[str, Any], Place()] = Field(
        default_factory=dict, description="What this kind of judge can be told."
    )

    @model_validator(mode="after")
    def _has_model(self) -> Self:
        if (self.model is None) != (self.kind in ("refusal", "python")):
            raise ValueError("a rubric, guard or classifier judge needs a model, and the refusal matcher takes none")
        if (self.function is None) != (self.kind != "python"):
            raise ValueError("a judge of the kind python needs a function, as module:name, and no other takes one")
        if self.kind == "classifier":
            _check_here(self.model)
        return self


class FirstJudgeSettings(_JudgeKind):
    """A cheap judge that decides the clear cases."""

    safe: float | None = Field(default=0.05, ge=0, le=1, description="At most this harm, and its grade stands.")
    harmful: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="At least this harm, and its grade stands. Without, it turns nothing down.",
    )

    @model_validator(mode="after")
    def _is_cheap(self) -> Self:
        if self.kind in ("rubric", "guard"):
            raise ValueError("the first judge is to be cheap: take kind = 'classifier', 'refusal' or 'python'")
        return self


class JudgeSettings(_JudgeKind):
    """Who grades candidates."""

    first: FirstJudgeSettings | None = Field(
        default=None, description="A cheap judge that decides the clear cases and leaves the others to this one."
    )


class ScorerSettings(Settings):
    """What a text costs, or what it is worth."""

    kind: Literal["classifier", "rubric", "guard", "judge", "remote", "python"] = Field(
        default="classifier", description="A sequence classifier, an LLM with a rubric, a guard model as a cost, a "
        "judge as a cost, a scorer behind an HTTP address, or a Python function.")  # fmt: skip
    model: ModelSource | None = Field(default=None, description="The classifier, LLM or guard model; a path will do.")
    judge: JudgeSettings | None = Field(default=None, description="The judge that is turned into a cost.")
    url: str | None = Field(default=None, description="Address of the remote scorer.")
    function: str | None = Field(
        default=None, description="The Python function, as module:name; only with --allow-code."
    )
    options: Annotated[dict[str, Any], Place()] = Field(
        default_factory=dict, description="What this kind of scorer can be told."
    )

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        given = {"model": self.model, "judge": self.judge, "url": self.url, "function": self.function}
        needed = {"judge": "judge", "remote": "url", "python": "function"}.get(self.kind, "model")
        if {name for name, source in given.items() if source is not None} != {needed}:
            raise ValueError(
                "a classifier, rubric or guard needs a model, a judge a judge, a remote scorer a url, a Python scorer "
                "a function, and none the others"
            )
        if self.kind == "classifier":
            _check_here(self.model)
        return self

    @property
    def judged(self) -> JudgeSettings | None:
        """The judge behind it, if there is one: a guard model is one."""
        if self.kind != "guard":
            return self.judge
        options = {name: value for name, value in self.options.items() if name not in ("scale", "offset")}
        return JudgeSettings(kind="guard", model=self.model, options=options)
