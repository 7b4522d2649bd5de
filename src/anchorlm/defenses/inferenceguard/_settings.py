from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from anchorlm.defenses.alignbeam import MixtureSettings
from anchorlm.records import Folder


class InferenceGuardSettings(MixtureSettings):
    """The knobs of InferenceGuard (arXiv 2502.01208); those of the mixture count where it is the proposal."""

    budget: float = Field(default=0.0, ge=0, description="d: the most that a response may cost; "
                          "0 is the cost model's own line.")  # fmt: skip
    max_harm: float = Field(default=0.375, ge=0, le=1, description="Most harm that the judge, if there is one, may see "
                            "in a whole response (0.375 is a grade of 2.5).")  # fmt: skip
    gamma: float = Field(default=1.0, gt=0, le=1, description="Discount per token while searching; the gate at the end "
                         "never discounts.")  # fmt: skip
    comfort: float = Field(default=0.0, ge=0, description="How far below the budget a response must be to end the "
                           "search at once; with a judge, to be given as a draft unread.")  # fmt: skip
    doubt: float = Field(default=0.3, ge=0, description="How near to its threshold a closed gate is in doubt, so that "
                         "the judge reads any draft.")  # fmt: skip
    beams: tuple[int, ...] = Field(default=(4, 16, 64), description="N: beams of each search, tried one after another "
                                   "while nothing is within budget; none: the draft or the refusal.")  # fmt: skip
    draft: bool = Field(default=True, description="Begin with one response, which ends the search if it is within "
                        "budget; without it the first search is for the reward, and takes its time.")  # fmt: skip
    keep: float = Field(default=0.25, gt=0, le=1, description="K as a share of N: beams that survive a block.")
    block: int = Field(default=32, ge=1, description="Tokens of a block.")
    retries: int = Field(default=2, ge=0, le=16, description="M: how often a block is sampled again if all beams fail.")
    diversity: float = Field(default=4.0, ge=0, description="Penalty on tokens that failed beams share, in nats.")
    lead: float = Field(
        default=0.0,
        ge=0,
        description="Reward by which a finished beam must lead to end the search.",
    )
    temperature: float = Field(default=1.0, gt=0, description="Of the search; the request's own if it samples.")
    proposal: Literal["target", "alignbeam"] = Field(default="target", description="Who writes: the target, or "
                                                     "AlignBeam's mixture with the anchor.")  # fmt: skip
    critic: Folder | None = Field(default=None, description="Folder of the artifact of `anchorlm fit inferenceguard`; "
                                  "None: unfinished beams are scored as they stand.")  # fmt: skip
    calibration: Folder | None = Field(default=None, description="Folder of the artifact of `anchorlm calibrate "
                                       "inferenceguard`, which lowers the limit of the gate.")  # fmt: skip
    release: Literal["whole", "blocks"] = Field(default="whole", description="When text comes: whole, or block by "
                                                "block, which gives up looking back.")  # fmt: skip

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
            raise ValueError("a calibrated limit judges whole responses, so that release must be whole")
        if not self.draft and not self.beams:
            raise ValueError("without a draft there must be beams: nothing would ever be written")
        if (self.gate == "inferaligner" or self.evidence) and self.proposal != "alignbeam":
            raise ValueError('the gate says when the anchor guides: it needs proposal = "alignbeam"')
        return self
