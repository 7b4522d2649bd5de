"""AnchorLM inside a vLLM server: AlignBeam's mixing as a logits processor. vLLM finds it by its entry points."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.vllm._mixer import Guided, Mixer
    from anchorlm.vllm._processor import AnchorProcessor, NamedProcessor
    from anchorlm.vllm._settings import Asked, PluginSettings
    from anchorlm.vllm._start import register
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_mixer": "Guided Mixer",
            "_processor": "AnchorProcessor NamedProcessor",
            "_settings": "Asked PluginSettings",
            "_start": "register",
        },
    )

__all__ = ["AnchorProcessor", "Asked", "Guided", "Mixer", "NamedProcessor", "PluginSettings", "register"]
