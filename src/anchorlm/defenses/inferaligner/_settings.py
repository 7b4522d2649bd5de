from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from anchorlm.defenses._base import DefenseSettings
from anchorlm.engine import Positions
from anchorlm.records import Folder
from anchorlm.steering import Readers, Units, Vector


class SteeringSettings(DefenseSettings):
    """What every defense that steers by a fitted artifact can be told. None: what was calibrated."""

    artifact: Folder = Field(description="Folder of the artifact of `anchorlm fit inferaligner`, for this very target.")
    alpha: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Strength of the shift. Too much of it breaks the text. By default the calibrated one.",
        json_schema_extra={"paper": "4, absolute"},
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="Blocks after which the residual stream is shifted. By default the calibrated ones.",
        json_schema_extra={"paper": "L_G"},
    )
    positions: Positions | None = Field(
        default=None,
        description="`prompt`, or `all`: every generated token too. By default the calibrated one.",
        json_schema_extra={"paper": "`all`"},
    )


class InferAlignerSettings(SteeringSettings):
    """The knobs of InferAligner (arXiv 2401.11206)."""

    bias: float | None = Field(
        default=None,
        description="The larger it is, the more often the gate opens. 1 is half the distance between harmless and "
        "harmful prompts. By default the one that was calibrated for the `reader`.",
        json_schema_extra={"paper": "b"},
    )
    gate: Literal["auto", "open", "closed"] = Field(
        default="auto", description="`open` or `closed`: you decide instead of the prompt."
    )
    reader: Readers = Field(
        default="target",
        description="Which model's activations the gate reads: `target`, `anchor`, or `both` on average.",
        json_schema_extra={"paper": "the target"},
    )
    gate_layers: tuple[int, ...] | None = Field(
        default=None, description="Blocks whose scores the gate averages. By default the calibrated ones."
    )
    vector: Vector = Field(
        default="anchor",
        description="Which vectors steer: those of the `anchor`. As controls of equal length: the target's `own`, or "
        "`random` ones.",
        json_schema_extra={"paper": "the anchor's; controls in figure 4"},
    )
    units: Units = Field(
        default="natural",
        description="What `alpha` counts in: `natural` lengths of the vectors, or `absolute`.",
        json_schema_extra={"paper": "`absolute`"},
    )
    answer: Literal["steer", "refuse"] | None = Field(
        default=None,
        description="What you get if the gate opens. `steer`: the steered answer. `refuse`: the fixed refusal. By "
        "default what was calibrated.",
        json_schema_extra={"paper": "`steer`"},
    )

    @model_validator(mode="after")
    def _in_units(self) -> Self:
        if self.units == "absolute" and self.alpha is None:
            raise ValueError('with units = "absolute" give alpha: the calibrated one is in natural lengths')
        return self
