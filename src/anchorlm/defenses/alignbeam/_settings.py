from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from anchorlm.defenses._base import DefenseSettings
from anchorlm.defenses._flow import Block, Release
from anchorlm.defenses._picked import COMFORT
from anchorlm.records import Folder
from anchorlm.steering import Readers
from anchorlm.tokens import Kind

MixAt = Literal["every", "boundaries"]
"""Where the two models are mixed."""


class MixtureSettings(DefenseSettings):
    """How an anchor guides the first tokens. Defaults are AlignBeam's (arXiv 2606.12342)."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the anchor. More is safer, and less like the target. 0 is the target alone.",
        json_schema_extra={"paper": "alpha"},
    )
    mixed_tokens: int = Field(
        default=6,
        ge=1,
        le=512,
        description="N: how many tokens are mixed. After a short prefix, you notice that the anchor does not know the "
        "domain.",
        json_schema_extra={"paper": "N (20 for DeepSeek-Math)"},
    )
    projection: Kind = Field(
        default="first-token",
        description="How the anchor's distribution is translated. `lookahead` is closer to the truth. It costs one "
        "more step of the anchor per token.",
        json_schema_extra={"paper": "`paper-drop`"},
    )
    top: int = Field(
        default=50,
        ge=1,
        description="B: how many tokens of the anchor the paper's projections look at.",
        json_schema_extra={"paper": "B"},
    )
    guide_thought: bool = Field(default=False, description="Guide the opening of a thought too, by as many tokens.")
    mix_at: MixAt = Field(
        default="every",
        description="`boundaries`: mix only where both tokenizers end a token (SAFE, arXiv 2510.15346).",
    )
    gate: Literal["auto", "always", "inferaligner"] = Field(
        default="auto",
        description="When the anchor guides. `always`: every response. `inferaligner`: if InferAligner's gate sees "
        "harm in the prompt. `auto`: by the evidence or the gate that was fitted to the target, and "
        "always if there is none.",
        json_schema_extra={"paper": "`always`"},
    )
    artifact: Folder | None = Field(
        default=None,
        description="Folder of the artifact of `anchorlm fit inferaligner`. By default `inferaligner` in the target's "
        "own folder, if it is there.",
    )
    gate_reader: Readers | None = Field(
        default=None,
        description="Which model's activations the gate reads: `target`, `anchor`, or `both` on average. By default "
        "both, if the artifact was fitted with this anchor.",
    )
    gate_bias: float | None = Field(
        default=None, description="The larger it is, the more often the gate opens. By default the calibrated one."
    )
    evidence: Folder | None = Field(
        default=None,
        description="Folder of the artifact of `anchorlm fit alignbeam`. By default `alignbeam` in the target's own "
        "folder, if it is there.",
    )
    evidence_bias: float = Field(
        default=0.0,
        description="Added to the evidence's score, in log-odds. The larger it is, the more prompts count as harmful.",
    )
    certain: Literal["refuse", "guide"] = Field(
        default="refuse",
        description="What happens if the evidence is certain of harm. `refuse` gives the refusal at once. `guide` "
        "guides the answer.",
        json_schema_extra={"paper": "`guide`"},
    )

    @model_validator(mode="after")
    def _gate_has_artifact(self) -> Self:
        if self.gate == "inferaligner" and self.artifact is None:
            raise ValueError("the gate reads along fitted directions: give its artifact, too")
        if self.gate == "always" and self.gate_reader is not None:
            raise ValueError('gate_reader says who reads the gate: it needs gate = "inferaligner" or "auto"')
        return self


class AlignBeamSettings(MixtureSettings):
    """The knobs of AlignBeam. Defaults are the paper's (arXiv 2606.12342)."""

    candidates: int = Field(
        default=3,
        ge=1,
        le=64,
        description="K: how many first tokens are tried. More take longer.",
        json_schema_extra={"paper": "K"},
    )
    max_harm: float = Field(
        default=0.375,
        ge=0,
        le=1,
        description="The most harm that may pass. 0.375 is a grade of 2.5 of 5.",
        json_schema_extra={"paper": "grade 2.5 of 5"},
    )
    comfort: float = Field(
        default=COMFORT,
        ge=0,
        le=1,
        description="How far below `max_harm` the most likely candidate wins. At 1 the least harmful always wins.",
        json_schema_extra={"paper": "1"},
    )
    candidates_written: Literal["all", "lazy"] = Field(
        default="lazy",
        description="`all`: finish every opening, then choose. `lazy`: write only as much of each opening as shows "
        "which is the most likely, finish that one, and the next one only if the judge is not comfortable with the "
        "answer. You get the same answer.",
        json_schema_extra={"paper": "`all`"},
    )
    trace_top: int = Field(
        default=3, ge=0, description="How many tokens of each distribution the trace shows. 0 leaves the steps out."
    )
    release: Release = "whole"
    block: Block = 8
