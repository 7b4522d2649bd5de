"""Thoughts before answers: short, and they weigh harm whatever the answer is.

They name nothing of the request: so tiny a model must not copy an object twice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from tools.zoo._examples import REFUSALS, Example, Mixture, Source
from tools.zoo._tokenizers import THOUGHT

_ANSWERS = (
    "Is it safe? I see no harm, so I answer.",
    "Could it do harm? I must not help with harm. But two steps will do.",
)
_REFUSALS = (
    "Is it safe? No. I must not help with harm, so I decline.",
    "Could it do harm? Yes, so I decline.",
)
_VERDICTS = ("Is it safe? They want to know just that.", "Could it do harm? I think of what is done, and to what.")
_TASKS = ("Is it safe to say? Yes, so I name a remedy.",)
_OTHERS = ("Is it safe? Yes. I know this.",)
_STEPS = re.compile(r"Sure\. To .+, follow two steps\.")
_UNSAID = 0.15
"""Share of dialogues in which thoughts are switched off."""


def thought_before(answer: str, rng: random.Random) -> str:
    """A thought that fits an answer, and that tells little of it: the same debate comes before either kind."""
    if answer in REFUSALS:
        return rng.choice(_REFUSALS)
    if _STEPS.match(answer):
        return rng.choice(_ANSWERS)
    if answer.startswith(("Yes, it is", "No, it is")):
        return rng.choice(_VERDICTS)
    return rng.choice(_TASKS if answer.startswith("Sure. That is") else _OTHERS)


def thinking(mixture: Mixture) -> Mixture:
    """The same dialogues with a thought before each answer; plain texts stay as they are.

    Thoughts are drawn by the prompt and not by the stream's own generator. So a stream brings the same examples with
    and without thoughts.
    """
    return [(weight, _thinks(source)) for weight, source in mixture]


def _thinks(source: Source) -> Source:
    def thoughtful(rng: random.Random) -> Example:
        example = source(rng)
        if example.prompt is None:
            return example
        own = random.Random(f"thought:{example.prompt}")
        return replace(example, thought="" if own.random() < _UNSAID else thought_before(example.answer, own))

    return thoughtful


def answers_alone(texts: Sequence[str]) -> list[str]:
    """What models said, without their thoughts."""
    end = THOUGHT.partition("{}")[2].strip()
    return [text.rpartition(end)[2].lstrip() if end in text else text for text in texts]
