from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be made again is kept: `ANCHORLM_CACHE`, or `~/.cache/anchorlm`."""
    return Path(os.environ.get("ANCHORLM_CACHE") or Path.home() / ".cache" / "anchorlm")
