from __future__ import annotations

from typing import Literal

MixAt = Literal["every", "boundaries"]
"""Where the two models are mixed."""
