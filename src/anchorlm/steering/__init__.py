"""Directions of harm in the residual stream, gates that read them, shifts that follow."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.steering._across import RidgeMap, matching_layer, ridge_map
    from anchorlm.steering._aligner import Aligner, Reading
    from anchorlm.steering._choices import Reader, Readers, Units, Vector
    from anchorlm.steering._companions import best_threshold, null_space_reader
    from anchorlm.steering._directions import Directions, Whitening, fisher_directions, harm_directions
    from anchorlm.steering._ends import prompt_activations
    from anchorlm.steering._fit import Across, check_options, fit_inferaligner
    from anchorlm.steering._gate import Gate, cosine_scores
    from anchorlm.steering._layers import layer_sets, tied, wide_middle
    from anchorlm.steering._logistic import logistic
    from anchorlm.steering._looks import Look, as_texts, check_activations, look_activations, looks, says_nothing
    from anchorlm.steering._measured import look_alikes_told, rate, separation, set_rates
    from anchorlm.steering._moments import Moments
    from anchorlm.steering._sets import GIVEN, LOOK_ALIKES, PLAIN, TASKS, TWINS, PromptSets
    from anchorlm.steering._split import distinct_sets
    from anchorlm.steering._trust import answer_of, established, uncalibrated
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_across": "RidgeMap matching_layer ridge_map",
            "_aligner": "Aligner Reading",
            "_choices": "Reader Readers Units Vector",
            "_companions": "best_threshold null_space_reader",
            "_directions": "Directions Whitening fisher_directions harm_directions",
            "_ends": "prompt_activations",
            "_fit": "Across check_options fit_inferaligner",
            "_gate": "Gate cosine_scores",
            "_layers": "layer_sets tied wide_middle",
            "_logistic": "logistic",
            "_looks": "Look as_texts check_activations look_activations looks says_nothing",
            "_measured": "look_alikes_told rate separation set_rates",
            "_moments": "Moments",
            "_sets": "GIVEN LOOK_ALIKES PLAIN TASKS TWINS PromptSets",
            "_split": "distinct_sets",
            "_trust": "answer_of established uncalibrated",
        },
    )

__all__ = [
    "GIVEN",
    "LOOK_ALIKES",
    "PLAIN",
    "TASKS",
    "TWINS",
    "Across",
    "Aligner",
    "Directions",
    "Gate",
    "Look",
    "Moments",
    "PromptSets",
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
    "distinct_sets",
    "established",
    "fisher_directions",
    "fit_inferaligner",
    "harm_directions",
    "layer_sets",
    "logistic",
    "look_activations",
    "look_alikes_told",
    "looks",
    "matching_layer",
    "null_space_reader",
    "prompt_activations",
    "rate",
    "ridge_map",
    "says_nothing",
    "separation",
    "set_rates",
    "tied",
    "uncalibrated",
    "wide_middle",
]
