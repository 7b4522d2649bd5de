"""Directions of harm in the residual stream, gates that read them, shifts that follow."""

from anchorlm.steering._across import RidgeMap, matching_layer, ridge_map
from anchorlm.steering._aligner import Aligner, Reader, Readers, Reading, Units, Vector
from anchorlm.steering._companions import best_threshold, null_space_reader
from anchorlm.steering._directions import Directions, Whitening, fisher_directions, harm_directions
from anchorlm.steering._fit import Across, check_options, fit_inferaligner
from anchorlm.steering._gate import Gate, cosine_scores
from anchorlm.steering._moments import Moments
from anchorlm.steering._read import check_activations, prompt_activations
from anchorlm.steering._trust import answer_of, established, uncalibrated

__all__ = [
    "Across",
    "Aligner",
    "Directions",
    "Gate",
    "Moments",
    "Reader",
    "Readers",
    "Reading",
    "RidgeMap",
    "Units",
    "Vector",
    "Whitening",
    "answer_of",
    "best_threshold",
    "check_activations",
    "check_options",
    "cosine_scores",
    "established",
    "fisher_directions",
    "fit_inferaligner",
    "harm_directions",
    "matching_layer",
    "null_space_reader",
    "prompt_activations",
    "ridge_map",
    "uncalibrated",
]
