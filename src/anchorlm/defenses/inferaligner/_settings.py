from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from anchorlm.defenses._base import DefenseSettings
from anchorlm.engine import Positions
from anchorlm.records import Folder
from anchorlm.steering import Readers, Units, Vector


class SteeringSettings(DefenseSettings):
    """What every defense that steers by a fitted artifact can be told; None: what was calibrated."""

    artifact: Folder = Field(description="Folder of the artifact of `anchorlm fit inferaligner`, for this very target.")
    alpha: float | None = Field(default=None, ge=0, le=100, description="Strength of the shift (see units).")
    layers: tuple[int, ...] | None = Field(default=None, description="Blocks after which the stream is shifted.")
    positions: Positions | None = Field(default=None, description="Shift the prompt's positions, or all.")


class InferAlignerSettings(SteeringSettings):
    """The knobs of InferAligner (arXiv 2401.11206)."""

    bias: float | None = Field(default=None, description="b: the larger, the more often the gate "
                               "opens; 1 is half the distance between harmless and harmful prompts.")  # fmt: skip
    gate: Literal["auto", "open", "closed"] = Field(default="auto", description="Let the prompt decide, or decide.")
    reader: Readers = Field(default="target", description="Whose activations the gate reads: the target's own; those "
                            "of the anchor, where the target cannot tell harm; or both, on average.")  # fmt: skip
    gate_layers: tuple[int, ...] | None = Field(default=None, description="Blocks whose scores the gate averages.")
    vector: Vector = Field(default="anchor", description="The anchor's vectors; or, as controls, the target's own or "
                           "random ones of equal length.")  # fmt: skip
    units: Units = Field(default="natural", description="Alpha in natural lengths of the vectors, or absolute.")
    answer: Literal["steer", "refuse"] | None = Field(default=None, description="Where the gate opens: the steered "
                               "model's answer, or the fixed refusal.")  # fmt: skip

    @model_validator(mode="after")
    def _in_units(self) -> Self:
        if self.units == "absolute" and self.alpha is None:
            raise ValueError('with units = "absolute" give alpha: the calibrated one is in natural lengths')
        return self
