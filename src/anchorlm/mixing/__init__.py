"""An anchor's distribution, translated and mixed into the target's."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.mixing._choices import MixAt
    from anchorlm.mixing._guide import LOOKAHEAD_ROWS, Guide, Translator
    from anchorlm.mixing._mixture import MixedSequence, Mixture, mix, token_text
    from anchorlm.mixing._opening import Opening
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_choices": "MixAt",
            "_guide": "LOOKAHEAD_ROWS Guide Translator",
            "_mixture": "MixedSequence Mixture mix token_text",
            "_opening": "Opening",
        },
    )

__all__ = ["LOOKAHEAD_ROWS", "Guide", "MixAt", "MixedSequence", "Mixture", "Opening", "Translator", "mix", "token_text"]
