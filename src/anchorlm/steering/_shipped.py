from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal

from anchorlm.records import Messages
from anchorlm.steering import LOOK_ALIKES, PLAIN, TASKS, TWINS, PromptSets

Part = Literal["train", "fit", "calibrate", "held"]
"""What a prompt is for: adapters learn on `train`, gates on `fit`. `calibrate` chooses settings, `held` grades."""

ATTACKS, WRAPPED = "wrapped attacks", "harmless wrappings"
NOISY_HARM, NOISY = "harmful before noise", "harmless before noise"
FOLLOW_UPS = "follow-ups"

_A_WRAPPING = 3
_A_PART = 12
"""Prompts of each part that noise follows, of each class."""
_SIGNS = ("]", "(", "--", "\\", "**", "::", "}{", "?:", "=>", "##", ";)", "|")
_ANSWERS = ("Yes, I can help with that.", "Here is what you asked for.", "Of course. Let me explain.")


def shipped_prompts(*parts: Part) -> PromptSets:
    """The prompts that come with the library, all written for it, in English.

    Look-alikes and their harmful twins differ in what is asked for and not in the words of alarm. Harmful twins stand
    in the wrappings of attacks, and look-alikes in harmless wrappings. Optimized attacks end in noise, so both
    classes stand before some. And turns that only ask to go on say nothing of harm.

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
            NOISY_HARM: _before_noise([pair["harmful"] for pair in pairs], parts),
        },
        harmless={
            LOOK_ALIKES: [pair["safe"] for pair in pairs],
            PLAIN: [one["prompt"] for one in _of("plain", parts)],
            TASKS: [one["prompt"] for one in _of("tasks", parts)],
            WRAPPED: _in(wrappings["plain"], [pair["safe"] for pair in pairs]),
            NOISY: _before_noise([pair["safe"] for pair in pairs], parts),
            FOLLOW_UPS: _following([one["prompt"] for one in _of("follow_ups", parts)], parts),
        },
    )


def _of(name: str, parts: tuple[Part, ...]) -> list[dict[str, Any]]:
    return [one for one in _all(name) if one["part"] in parts]


@cache
def _all(name: str) -> list[dict[str, Any]]:
    text = files("anchorlm.steering").joinpath("prompts", f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _in(wrappings: list[str], requests: list[str]) -> list[str]:
    """Each wrapping around some of the requests, always the same."""
    chance = Random(0)
    return [
        wrapping.replace("{request}", request)
        for wrapping in wrappings
        for request in chance.sample(requests, min(_A_WRAPPING, len(requests)))
    ]


def _before_noise(requests: list[str], parts: tuple[Part, ...]) -> list[str]:
    """Some of the requests, each with words and signs behind it that mean nothing."""
    chance = Random(" ".join(parts))
    words = [word for one in _all("plain") for word in one["prompt"].split()]
    return [
        f"{request} {''.join(chance.choice(words) + chance.choice((' ', *_SIGNS)) for _ in range(16))}"
        for request in chance.sample(requests, min(_A_PART * len(parts), len(requests)))
    ]


def _following(turns: list[str], parts: tuple[Part, ...]) -> list[Messages | str]:
    """Each turn by itself, and after an answer to a plain question."""
    questions = [one["prompt"] for one in _of("plain", parts)]
    talks: list[Messages | str] = []
    for place, turn in enumerate(turns):
        talks += [turn, [
            {"role": "user", "content": questions[place % len(questions)]},
            {"role": "assistant", "content": _ANSWERS[place % len(_ANSWERS)]},
            {"role": "user", "content": turn},
        ]]  # fmt: skip
    return talks
