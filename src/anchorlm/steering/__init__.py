"""Directions of harm in the residual stream, gates that read them, shifts that follow."""

from anchorlm.steering._across import RidgeMap, matching_layer, ridge_map
from anchorlm.steering._aligner import Aligner, Reader, Readers, Reading, Units, Vector
from anchorlm.steering._companions import best_threshold, null_space_reader
from anchorlm.steering._directions import Directions, Whitening, fisher_directions, harm_directions
from anchorlm.steering._fit import Across, check_options, fit_inferaligner
from anchorlm.steering._gate import Gate, cosine_scores
from anchorlm.steering._looks import (
    Look,
    as_texts,
    check_activations,
    each_look,
    look_activations,
    looks,
    prompt_activations,
)
from anchorlm.steering._moments import Moments
from anchorlm.steering._trust import answer_of, established, uncalibrated

__all__ = [
    "Across",
    "Aligner",
    "Directions",
    "Gate",
    "Look",
    "Moments",
    "Reader",
    "Readers",
    "Reading",
    "RidgeMap",
    "Units",
    "Vector",
    "Whitening",
    "answer_of",
    "as_texts",
    "best_threshold",
    "check_activations",
    "check_options",
    "cosine_scores",
    "each_look",
    "established",
    "fisher_directions",
    "fit_inferaligner",
    "harm_directions",
    "look_activations",
    "looks",
    "matching_layer",
    "null_space_reader",
    "prompt_activations",
    "ridge_map",
    "uncalibrated",
]
