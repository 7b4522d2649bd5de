"""How the embedded models are made. Nothing of this is in the package."""

from tools.zoo._build import build

__all__ = ["build"]
