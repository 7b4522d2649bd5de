"""Control points on activations, of no method: directions of harm, gates that read them, and prompts to fit them on."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.steering._choices import KIND, Pooling, Reader, Readers, Units, Vector
    from anchorlm.steering._classes import LEAST, Split, classes, distinct_sets, split_prompts
    from anchorlm.steering._directions import Directions, Whitening, fisher_directions, harm_directions
    from anchorlm.steering._ends import own_start, prompt_activations
    from anchorlm.steering._gate import Gate, cosine_scores
    from anchorlm.steering._logistic import logistic
    from anchorlm.steering._looks import (
        Look,
        as_texts,
        check_activations,
        look_activations,
        looks,
        says_nothing,
        with_activations,
    )
    from anchorlm.steering._measured import look_alikes_told, rate, separation, set_rates
    from anchorlm.steering._moments import Moments
    from anchorlm.steering._reading import GateReader, Reading
    from anchorlm.steering._sets import GIVEN, LOOK_ALIKES, PLAIN, TASKS, TWINS, PromptSets
    from anchorlm.steering._shipped import Part, shipped_prompts
    from anchorlm.steering._trust import answer_of, established, uncalibrated
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_choices": "KIND Pooling Reader Readers Units Vector",
            "_classes": "LEAST Split classes distinct_sets split_prompts",
            "_directions": "Directions Whitening fisher_directions harm_directions",
            "_ends": "own_start prompt_activations",
            "_gate": "Gate cosine_scores",
            "_logistic": "logistic",
            "_looks": "Look as_texts check_activations look_activations looks says_nothing with_activations",
            "_measured": "look_alikes_told rate separation set_rates",
            "_moments": "Moments",
            "_reading": "GateReader Reading",
            "_sets": "GIVEN LOOK_ALIKES PLAIN PromptSets TASKS TWINS",
            "_shipped": "Part shipped_prompts",
            "_trust": "answer_of established uncalibrated",
        },
        moved={
            "anchorlm.defenses.inferaligner": "Across Aligner RidgeMap fit_inferaligner matching_layer ridge_map",
        },
    )

__all__ = [
    "GIVEN",
    "KIND",
    "LEAST",
    "LOOK_ALIKES",
    "PLAIN",
    "TASKS",
    "TWINS",
    "Directions",
    "Gate",
    "GateReader",
    "Look",
    "Moments",
    "Part",
    "Pooling",
    "PromptSets",
    "Reader",
    "Readers",
    "Reading",
    "Split",
    "Units",
    "Vector",
    "Whitening",
    "answer_of",
    "as_texts",
    "check_activations",
    "classes",
    "cosine_scores",
    "distinct_sets",
    "established",
    "fisher_directions",
    "harm_directions",
    "logistic",
    "look_activations",
    "look_alikes_told",
    "looks",
    "own_start",
    "prompt_activations",
    "rate",
    "says_nothing",
    "separation",
    "set_rates",
    "shipped_prompts",
    "split_prompts",
    "uncalibrated",
    "with_activations",
]
