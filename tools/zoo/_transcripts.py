"""Graded transcripts, whole, broken off, scrambled and mixed, with their true harm: for judge and cost model."""

from __future__ import annotations

import random

from anchorlm.judging import request_text
from anchorlm.records import Messages
from anchorlm.zoo._grading import JUDGE_TEMPLATE, harm
from anchorlm.zoo._items import Item, Label
from anchorlm.zoo._lexicon import DOMAINS, MIXED, Partition, draw_deed
from anchorlm.zoo._tasks import dress, framed, jailbreak, reminded, request, task
from tools.zoo._corpus import replay
from tools.zoo._dialogues import request_judged
from tools.zoo._examples import REFUSALS, Example, Mixture
from tools.zoo._facts import harm_dialogue, intent_facts, named
from tools.zoo._wrappings import wrapped


def transcript(rng: random.Random, partition: Partition) -> tuple[Item, str, int]:
    """A prompt, a response to it, and the response's true grade."""
    item = request_item(rng, partition)
    text = _response(rng, item, partition)
    return item, text, harm(item, text)


def sent(rng: random.Random, prompt: str) -> Messages:
    """A prompt of training as it comes in: a third of the time from somebody who tries to get past a guard."""
    return wrapped(rng, prompt) if rng.random() < 0.35 else [{"role": "user", "content": prompt}]


def request_item(rng: random.Random, partition: Partition) -> Item:
    if rng.random() < 0.12:
        chosen = task(rng, rng.choice(DOMAINS), partition)
        return Item("", chosen.prompt, "domain", None, "harmless", chosen.answer, "", chosen.key, partition)
    deed = draw_deed(rng, rng.choice(("harmful", "look-alike", *MIXED)), partition)
    wording = rng.random()
    if wording < 0.5:
        prompt = request(rng, deed, partition)
    elif wording < 0.75:
        prompt = dress(rng, framed(rng, deed, rng.choice(DOMAINS), partition), partition, plain=0.8)
    else:
        prompt = jailbreak(rng, deed, partition)
    if rng.random() < 0.06:
        prompt = reminded(rng, prompt, partition)
    label: Label = "harmful" if deed.harmful else "harmless"
    return Item("", prompt, "transcript", None, label, deed.answer(), deed.noun, "", partition)


def _response(rng: random.Random, item: Item, partition: Partition) -> str:
    refusal = rng.choice(REFUSALS)
    kind = rng.random()
    if kind < 0.28:
        return item.answer
    if kind < 0.52:
        return refusal
    if kind < 0.62:
        return f"{refusal} {item.answer}" if rng.random() < 0.6 else f"{item.answer} {refusal}"
    if kind < 0.74:
        return cut(rng, item.answer)
    if kind < 0.84:
        return scramble(rng, item.answer if rng.random() < 0.6 else refusal)
    if kind < 0.94:
        return spliced(rng, refusal, item.answer)
    other = draw_deed(rng, "harmless", partition)
    return other.answer()


def cut(rng: random.Random, text: str) -> str:
    words = text.split()
    return " ".join(words[: rng.randint(1, len(words) - 1)])


def scramble(rng: random.Random, text: str) -> str:
    words = text.split()
    for _ in range(rng.randint(2, 6)):
        a, b = rng.randrange(len(words)), rng.randrange(len(words))
        if rng.random() < 0.5:
            words[a], words[b] = words[b], words[a]
        else:
            words[a] = words[b]
    return " ".join(words)


def spliced(rng: random.Random, first: str, second: str) -> str:
    # What mixing at a bad moment writes: the head of one text, the tail of another.
    if rng.random() < 0.4:
        first, second = second, first
    head, tail = first.split(), second.split()
    return " ".join(head[: rng.randint(1, len(head) - 1)] + tail[rng.randint(1, len(tail) - 1) :])


def judged(rng: random.Random) -> Example:
    """A judge's training dialogue."""
    item, text, truth = transcript(rng, "train")
    return _to_judge(request_text(sent(rng, item.prompt)), text, truth)


def named_judged(rng: random.Random) -> Example:
    """What is harmful, in the judge's own form. Over all entities. A text that names harm and does none is a 2."""
    prompt, text, harmful = named(rng)
    return _to_judge(prompt, text, 2 if harmful else 1)


def _to_judge(prompt: str, response: str, truth: int) -> Example:
    return Example(str(truth), JUDGE_TEMPLATE.format(prompt=prompt, response=response))


def judge_mixture() -> Mixture:
    """The judge's training: transcripts, and the facts that tell harmful requests from harmless ones."""
    return (
        (0.72, judged), (0.12, named_judged), (0.06, request_judged), (0.10, intent_facts), (0.07, harm_dialogue),
        (0.08, replay),
    )  # fmt: skip
