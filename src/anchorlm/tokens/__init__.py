"""Vocabularies as bytes, projections between them, the canonical re-tokenization of a growing response."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.tokens._exact import ExactProjection, exact_projection
    from anchorlm.tokens._grammar import Form, Grammars
    from anchorlm.tokens._kinds import Kind
    from anchorlm.tokens._pieces import PieceVocabulary, in_pieces, piece_bytes, prompt_ids, prompt_of
    from anchorlm.tokens._projection import Projection, ProjectionReport
    from anchorlm.tokens._retokenizer import Encoded, Retokenizer
    from anchorlm.tokens._text import token_text
    from anchorlm.tokens._vocabulary import ByteVocabulary
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_exact": "ExactProjection exact_projection",
            "_grammar": "Form Grammars",
            "_kinds": "Kind",
            "_pieces": "PieceVocabulary in_pieces piece_bytes prompt_ids prompt_of",
            "_projection": "Projection ProjectionReport",
            "_retokenizer": "Encoded Retokenizer",
            "_vocabulary": "ByteVocabulary",
            "_text": "token_text",
        },
    )

__all__ = [
    "ByteVocabulary",
    "Encoded",
    "ExactProjection",
    "Form",
    "Grammars",
    "Kind",
    "PieceVocabulary",
    "Projection",
    "ProjectionReport",
    "Retokenizer",
    "exact_projection",
    "in_pieces",
    "piece_bytes",
    "prompt_ids",
    "prompt_of",
    "token_text",
]
