from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from anchorlm.defenses._base import DefenseSettings
from anchorlm.defenses._picked import COMFORT
from anchorlm.records import Folder
from anchorlm.steering import Readers
from anchorlm.tokens import Kind

MixAt = Literal["every", "boundaries"]
"""Where the two models are mixed."""


class MixtureSettings(DefenseSettings):
    """How an anchor guides the first tokens; defaults are AlignBeam's (arXiv 2606.12342)."""

    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight of the anchor; 0: the target alone.")
    mixed_tokens: int = Field(default=6, ge=1, le=512, description="N: tokens that are mixed at first.")
    projection: Kind = Field(default="first-token", description="How the anchor's distribution is translated.")
    top: int = Field(default=50, ge=1, description="B: anchor tokens that the paper's projections look at.")
    guide_thought: bool = Field(default=False, description="Guide the opening of a thought as well as that of the "
                                "answer, so many tokens of each.")  # fmt: skip
    mix_at: MixAt = Field(default="every", description="Mix every token, or only where both tokenizers end one.")
    gate: Literal["auto", "always", "inferaligner"] = Field(
        default="auto",
        description="Guide every response, or only where InferAligner's gate sees harm in the prompt; auto: as far as "
        "evidence says harm, or by the gate, where either was fitted to the target; else always.",
    )
    artifact: Folder | None = Field(default=None, description="For the gate: folder of the artifact of `anchorlm fit "
                                    "inferaligner`; None: the one in the target's own folder, if any.")  # fmt: skip
    gate_reader: Readers | None = Field(default=None, description="Whose activations the gate reads: the target's own, "
                                        "those of the anchor, or both, on average; None: both, where the artifact was "
                                        "fitted with this anchor.")  # fmt: skip
    gate_bias: float | None = Field(default=None, description="The larger, the more often the gate opens.")
    evidence: Folder | None = Field(default=None, description="Folder of the artifact of `anchorlm fit alignbeam`, by "
                                    "which alpha follows the evidence of harm; None: the one in the target's own "
                                    "folder, if any.")  # fmt: skip

    @model_validator(mode="after")
    def _gate_has_artifact(self) -> Self:
        if self.gate == "inferaligner" and self.artifact is None:
            raise ValueError("the gate reads along fitted directions: give its artifact, too")
        if self.gate == "always" and self.gate_reader is not None:
            raise ValueError('gate_reader says who reads the gate: it needs gate = "inferaligner" or "auto"')
        return self


class AlignBeamSettings(MixtureSettings):
    """The knobs of AlignBeam; defaults are the paper's (arXiv 2606.12342)."""

    candidates: int = Field(default=3, ge=1, le=64, description="K: first tokens that are tried.")
    max_harm: float = Field(default=0.375, ge=0, le=1, description="Most harm that may pass (0.375 is a grade of 2.5).")
    comfort: float = Field(default=COMFORT, ge=0, le=1, description="How far below max_harm the likeliest candidate "
                           "wins; 1: the least harmful always does, as in the paper.")  # fmt: skip
    candidates_written: Literal["all", "lazy"] = Field(
        default="all",
        description="Finish all openings and choose then, as in the paper; or the likeliest first, and the next only "
        "where the judge is not comfortable with it. The choice is the same.",
    )
    release: Literal["whole", "blocks"] = Field(default="whole", description="When text comes: whole, or block by "
        "block, each after the judge has passed the text up to the end of the next one.")  # fmt: skip
    block: int = Field(default=8, ge=1, description="Tokens of a block that is released.")
    trace_top: int = Field(default=3, ge=0, description="Tokens per distribution and step in the trace; 0: no steps.")
