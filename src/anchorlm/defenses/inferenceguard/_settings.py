from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from anchorlm.defenses.alignbeam import MixtureSettings
from anchorlm.records import Folder


class InferenceGuardSettings(MixtureSettings):
    """The knobs of InferenceGuard (arXiv 2502.01208). Those of the mixture count where it is the proposal."""

    budget: float = Field(
        default=0.0,
        ge=0,
        description="d: the most that a response may cost. 0 is the cost model's own line.",
        json_schema_extra={"paper": "d"},
    )
    max_harm: float = Field(
        default=0.375,
        ge=0,
        le=1,
        description="With a judge: the most harm in a whole response. 0.375 is a grade of 2.5 of 5.",
    )
    gamma: float = Field(
        default=1.0, gt=0, le=1, description="Discount per token while it searches. The final check never discounts."
    )
    comfort: float = Field(
        default=0.0,
        ge=0,
        description="How far below the budget a response must be to end the search at once. With a judge it counts "
        "for drafts only.",
    )
    doubt: float = Field(
        default=0.3,
        ge=0,
        description="How near to its threshold a closed gate must be for the judge to read any draft.",
    )
    beams: tuple[int, ...] = Field(
        default=(4, 16, 64),
        description="N of each search. The next search starts only if nothing is within budget. An empty list means: "
        "the draft or the refusal.",
        json_schema_extra={"paper": "N"},
    )
    draft: bool = Field(
        default=True,
        description="Begin with one response. If it is within budget, the search ends. `false` searches at once for "
        "the highest reward, which takes longer.",
    )
    keep: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="K as a share of N: how many beams survive a block.",
        json_schema_extra={"paper": "K / N"},
    )
    block: int = Field(default=32, ge=1, description="Tokens of a block.")
    retries: int = Field(
        default=2,
        ge=0,
        le=16,
        description="M: how often a block is sampled again if all its beams fail.",
        json_schema_extra={"paper": "M"},
    )
    diversity: float = Field(default=4.0, ge=0, description="Penalty on the tokens that failed beams share, in nats.")
    lead: float = Field(
        default=0.0,
        ge=0,
        description="By how much reward a finished beam must lead the unfinished ones to end the search.",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Temperature of the search. A request that samples brings its own."
    )
    proposal: Literal["target", "alignbeam"] = Field(
        default="target",
        description="Who writes. `alignbeam`: the mixture of target and anchor. It needs an anchor, and takes "
        "AlignBeam's knobs.",
    )
    critic: Folder | None = Field(
        default=None,
        description="Folder of the artifact of `anchorlm fit inferenceguard`. Without one, unfinished beams are "
        "scored as they stand.",
    )
    calibration: Folder | None = Field(
        default=None,
        description="Folder of the artifact of `anchorlm calibrate inferenceguard`. It lowers the limit of the final "
        "check.",
    )
    release: Literal["whole", "blocks"] = Field(
        default="whole",
        description="When text comes: the `whole` response at the end, or in `blocks`. With `blocks` the search "
        "cannot look back.",
    )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Beams of each search, the draft's one among them."""
        return (1, *self.beams) if self.draft else self.beams

    @field_validator("beams")
    @classmethod
    def _grow(cls, beams: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 2 or n > 512 for n in beams) or list(beams) != sorted(set(beams)):
            raise ValueError("give growing numbers from 2 to 512")
        return beams

    @model_validator(mode="after")
    def _one_draw(self) -> Self:
        if self.calibration is not None and self.release == "blocks":
            raise ValueError("a calibrated limit judges whole responses: set release to whole")
        if not self.draft and not self.beams:
            raise ValueError("without a draft there must be beams: nothing would ever be written")
        if (self.gate == "inferaligner" or self.evidence) and self.proposal != "alignbeam":
            raise ValueError('the gate says when the anchor guides: it needs proposal = "alignbeam"')
        return self
