"""AnchorLM inside a vLLM server: AlignBeam's mixing as a logits processor. vLLM finds it by its entry points.

The classes that vLLM loads are in `anchorlm.vllm.processor`, which needs vLLM.
"""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.engine import VLLMEngine
    from anchorlm.vllm._mixer import Guided, Mixer
    from anchorlm.vllm._settings import Asked, PluginSettings
    from anchorlm.vllm._start import register
    from anchorlm.vllm._states import SteeringFile, save_steering
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_mixer": "Guided Mixer",
            "_settings": "Asked PluginSettings",
            "_start": "register",
            "_states": "SteeringFile save_steering",
            "anchorlm.engine": "VLLMEngine",
        },
    )

__all__ = ["Asked", "Guided", "Mixer", "PluginSettings", "SteeringFile", "VLLMEngine", "register", "save_steering"]
