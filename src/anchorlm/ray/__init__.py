"""AnchorLM on a Ray cluster: `serve run anchorlm.ray:app recipe=guard.toml`, and what `--ray` does with many prompts.

Without Ray, every name here is a `UserError` that says how to install it.
"""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily
from anchorlm.ray._start import require

if TYPE_CHECKING:
    from anchorlm.ray._answers import answers
    from anchorlm.ray._application import app
    from anchorlm.ray._settings import RayServing
    from anchorlm.ray._shares import crew
else:
    _find, __dir__ = lazily(
        __name__,
        {
            "_answers": "answers",
            "_application": "app",
            "_settings": "RayServing",
            "_shares": "crew",
        },
    )

    def __getattr__(name: str) -> object:
        if name in __all__:
            require()
        return _find(name)


__all__ = ["RayServing", "answers", "app", "crew"]
