from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal

from anchorlm.steering import LOOK_ALIKES, PLAIN, TASKS, TWINS, PromptSets

Part = Literal["train", "fit", "calibrate", "held"]
"""What a prompt is for: adapters learn on `train`, gates on `fit`; `calibrate` chooses settings, `held` grades."""

ATTACKS, WRAPPED = "wrapped attacks", "harmless wrappings"

_A_WRAPPING = 3


def shipped_prompts(*parts: Part) -> PromptSets:
    """The prompts that come with the library, all written for it, in English.

    Look-alikes and their harmful twins differ in what is asked for and not in the words of alarm. Harmful twins stand
    in the wrappings of attacks, and look-alikes in harmless wrappings.

    Args:
        parts: Which of them.
    """
    pairs = _of("pairs", parts)
    wrappings = {
        category: [one["text"] for one in _of("wrapped", parts) if one["category"] == category]
        for category in ("attack", "plain")
    }
    return PromptSets(
        harmful={
            TWINS: [pair["harmful"] for pair in pairs],
            ATTACKS: _in(wrappings["attack"], [pair["harmful"] for pair in pairs]),
        },
        harmless={
            LOOK_ALIKES: [pair["safe"] for pair in pairs],
            PLAIN: [one["prompt"] for one in _of("plain", parts)],
            TASKS: [one["prompt"] for one in _of("tasks", parts)],
            WRAPPED: _in(wrappings["plain"], [pair["safe"] for pair in pairs]),
        },
    )


def _of(name: str, parts: tuple[Part, ...]) -> list[dict[str, Any]]:
    return [one for one in _all(name) if one["part"] in parts]


@cache
def _all(name: str) -> list[dict[str, Any]]:
    text = files("anchorlm.fitting").joinpath("prompts", f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _in(wrappings: list[str], requests: list[str]) -> list[str]:
    """Each wrapping around some of the requests, always the same."""
    chance = Random(0)
    return [
        wrapping.replace("{request}", request)
        for wrapping in wrappings
        for request in chance.sample(requests, min(_A_WRAPPING, len(requests)))
    ]
