from __future__ import annotations

from typing import Literal

KIND = "inferaligner"
"""What its artifacts are called."""

Vector = Literal["anchor", "own", "random"]
"""Whose vectors steer."""

Units = Literal["natural", "absolute"]
"""In what a strength is told."""

Reader = Literal["target", "anchor"]
"""Whose activations tell harm: the target's own, as in the paper, or those of an aligned model next to it (ours)."""

Readers = Literal["target", "anchor", "both"]
"""One of them, or both on average."""

Pooling = Literal["end", "both"]
"""Where a gate reads a prompt: at its last token, as in the paper, or also on average over its tokens (ours)."""
