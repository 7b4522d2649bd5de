from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anchorlm.tokens._vocabulary import ByteVocabulary


def token_text(vocabulary: ByteVocabulary, token: int) -> str:
    """A token as people read it. One that ends the response as `<stop>`."""
    if token in vocabulary.stop:
        return "<stop>"
    return vocabulary.token_bytes(token).decode("utf-8", errors="backslashreplace")
