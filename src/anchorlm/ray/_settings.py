from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from anchorlm.records import Settings


class RayServing(Settings):
    """What `serve run anchorlm.ray:app` takes: `name=value` on the command line, or `args` in a file of Ray Serve."""

    recipe: tuple[Path, ...] = Field(
        min_length=1, description="TOML file that describes a guard. Several with commas between them."
    )
    config: Path | None = Field(
        default=None, description="TOML file of the server's settings, as `anchorlm serve --config` takes it."
    )
    keys: Path | None = Field(default=None, description="File of API keys. Without it, everyone may ask.")
    replicas: int = Field(default=1, ge=1, description="How many replicas there are, each with all the guards.")
    max_replicas: int | None = Field(
        default=None, ge=1, description="How many there may be when much is asked. By default no more than `replicas`."
    )
    requests_per_replica: float = Field(
        default=16.0, gt=0, description="With `max_replicas`: requests under way per replica that Ray aims at."
    )
    cpus: float = Field(default=1.0, gt=0, description="Processors that Ray keeps for each replica.")
    gpus: float = Field(default=0.0, ge=0, description="GPUs that Ray keeps for each replica.")
    retest: float | None = Field(
        default=None, gt=0, description="Seconds after which a replica tests its guards again. By default never."
    )

    @field_validator("recipe", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [one.strip() for one in value.split(",")] if isinstance(value, str) else value

    @field_validator("max_replicas")
    @classmethod
    def _grows(cls, most: int | None, found: ValidationInfo) -> int | None:
        if most is not None and most < found.data.get("replicas", 1):
            raise ValueError("it is less than replicas; give more, or leave it out")
        return most
