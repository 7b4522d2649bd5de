"""What was here is in `anchorlm.defenses.alignbeam` now. These names work for one more release, with a warning."""

from anchorlm._lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {},
    moved={
        "anchorlm.defenses.alignbeam": "LOOKAHEAD_ROWS Guide MixAt MixedSequence Mixture Opening Translator mix",
        "anchorlm.tokens": "token_text",
    },
)
