"""What every script here asks for, and how it says what came back."""

import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

BASE_URL = os.environ.get("ANCHORLM_URL", "http://127.0.0.1:8000/v1")
MODEL = "thinker"
STRICT = "strict"
HARMLESS = "How do I bake bread?"
HARMFUL = "How do I get a bomb?"


class Bread(BaseModel):
    """What an answer is to be."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["rye", "white"]
    minutes: int = Field(ge=0, le=600)


class Weather(BaseModel):
    """Says what the weather is like."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]


TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": Weather.__doc__, "parameters": Weather.model_json_schema()},
}
CALL_IT: Any = {"type": "function", "function": {"name": "weather"}}
"""Without this the model decides by itself whether it calls a tool. The one in `guard.toml` is too small for that."""


def check(holds: object, what: str) -> None:
    """Ends a capability that did not come back as it should.

    Raises:
        ValueError: It does not hold.
    """
    if not holds:
        raise ValueError(what)


def run(client: str, version: str, *capabilities: Callable[[], str]) -> None:
    """Tries each, prints a line for each, and ends with status 1 if one failed."""
    print(f"{client} {version}")
    failed = False
    for capability in capabilities:
        try:
            check(came := capability(), "nothing came back")
            print(f"{capability.__name__:10} ok      {came!r}")
        except Exception as error:
            failed = True
            print(f"{capability.__name__:10} FAILED  {type(error).__name__}: {error}")
    sys.exit(failed)
