"""An anchor's distribution, translated and mixed into the target's."""

from anchorlm.mixing._guide import LOOKAHEAD_ROWS, Guide, Translator
from anchorlm.mixing._mixture import MixAt, MixedSequence, Mixture, mix, token_text
from anchorlm.mixing._opening import Opening

__all__ = ["LOOKAHEAD_ROWS", "Guide", "MixAt", "MixedSequence", "Mixture", "Opening", "Translator", "mix", "token_text"]
