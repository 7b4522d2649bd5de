from __future__ import annotations

from typing import Literal

Kind = Literal["first-token", "lookahead", "paper-drop", "paper-first", "paper-exact"]
"""The projections, by name."""
