"""AlignBeam (arXiv 2606.12342): settings, defense, guidance, guide, mixture, evidence. Fit and card."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.defenses.alignbeam._card import save_evidence
    from anchorlm.defenses.alignbeam._defense import AlignBeam
    from anchorlm.defenses.alignbeam._evidence import EVIDENCE, Evidence, Opening, Seen, opening_score, readers_of
    from anchorlm.defenses.alignbeam._fit import fit_alignbeam
    from anchorlm.defenses.alignbeam._guidance import CERTAIN, GUIDED_BY, Guidance, Guided
    from anchorlm.defenses.alignbeam._guide import LOOKAHEAD_ROWS, Guide, Translator
    from anchorlm.defenses.alignbeam._mixture import MixedSequence, Mixture, mix
    from anchorlm.defenses.alignbeam._settings import AlignBeamSettings, MixAt, MixtureSettings
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_card": "save_evidence",
            "_defense": "AlignBeam",
            "_evidence": "EVIDENCE Evidence Opening Seen opening_score readers_of",
            "_fit": "fit_alignbeam",
            "_guidance": "CERTAIN GUIDED_BY Guidance Guided",
            "_guide": "Guide LOOKAHEAD_ROWS Translator",
            "_mixture": "MixedSequence Mixture mix",
            "_settings": "AlignBeamSettings MixAt MixtureSettings",
        },
    )

__all__ = [
    "CERTAIN",
    "EVIDENCE",
    "GUIDED_BY",
    "LOOKAHEAD_ROWS",
    "AlignBeam",
    "AlignBeamSettings",
    "Evidence",
    "Guidance",
    "Guide",
    "Guided",
    "MixAt",
    "MixedSequence",
    "Mixture",
    "MixtureSettings",
    "Opening",
    "Seen",
    "Translator",
    "fit_alignbeam",
    "mix",
    "opening_score",
    "readers_of",
    "save_evidence",
]
