from __future__ import annotations

from typing import Literal

Positions = Literal["prompt", "all"]
"""Which positions are steered."""
