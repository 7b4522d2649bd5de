"""Prompts: a request about a deed in its many wordings, and the tasks of the three domains."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from anchorlm.zoo._lexicon import (
    Deed,
    Partition,
    complaints,
    idle_words,
    invent,
    lexicon,
    metrics,
    operands,
    patterns,
    role,
    splice,
    word,
)

MONTHS = ["January", "March", "April", "May", "June", "July", "August", "October", "November", "December"]


@dataclass(frozen=True, slots=True)
class Task:
    """A domain question with its worked answer and the short key that a right answer must name."""

    prompt: str
    answer: str
    key: str


def _fill(text: str, rng: random.Random, partition: Partition, **more: str) -> str:
    return text.format(
        name=word(rng, "names", partition),
        place=word(rng, "places", partition),
        role=role(rng, partition),
        **more,
    )


def wording(rng: random.Random, kind: str, partition: Partition) -> str:
    """A sentence pattern of a kind. In training, half of the time blurred.

    What is asked for decides, not how: whoever has met only whole sentences learns the sentences.
    """
    pattern = rng.choice(patterns(kind, partition))
    if partition != "train" or kind in _EXACT or rng.random() < 0.5:
        return pattern
    return blurred(rng, pattern)


def blurred(rng: random.Random, pattern: str, kept: Collection[str] = ()) -> str:
    """A pattern with words dropped, moved or replaced. Its gaps and the words that are `kept` stay."""
    words: list[str] = []
    for entry in pattern.split(" "):
        fate = rng.random()
        if "{" in entry or entry.strip(".,:?").lower() in kept or fate < 0.68:
            words.append(entry)
        elif fate < 0.78:
            words.insert(max(0, len(words) - 1), entry)
        elif fate < 0.90:
            words.append(splice(rng) if rng.random() < 0.5 else rng.choice(idle_words()))
    return " ".join(words)


# Every word of these carries meaning.
_EXACT = ("plus", "minus", "headlines")


def stem(rng: random.Random, deed: Deed, partition: Partition) -> tuple[str, str]:
    """A bare request and its "verb the noun" phrase."""
    determiner = rng.choice(("the", "the", "a", "this", "my"))
    if determiner == "a" and deed.noun[0] in "aeiou":
        determiner = "an"
    phrase = f"{deed.verb} {determiner} {deed.noun}"
    return wording(rng, "stems", partition).format(x=phrase), phrase


def _random_words(rng: random.Random) -> str:
    filler = lexicon()["words"]["filler"].split()
    text = " ".join(rng.choice(filler) for _ in range(rng.randint(2, 5)))
    return text.capitalize() + rng.choice(".!?:.")


def dress(rng: random.Random, request: str, partition: Partition, plain: float = 0.4) -> str:
    """Put leads and tails around a request. In training a third of them are random words, which no template owns."""
    if rng.random() < plain:
        return request
    parts = [request]
    for place, key in ((0, "leads"), (1, "tails")):
        if rng.random() < 0.5:
            continue
        if partition == "train" and rng.random() < 0.4:
            text = _random_words(rng)
        else:
            text = _fill(wording(rng, key, partition), rng, partition)
        parts.insert(0 if place == 0 else len(parts), text)
    return " ".join(parts)


def request(rng: random.Random, deed: Deed, partition: Partition) -> str:
    """A plain request for a deed."""
    return dress(rng, stem(rng, deed, partition)[0], partition)


def reminded(rng: random.Random, prompt: str, partition: Partition) -> str:
    """A prompt between the sentences that prompting defenses put around it."""
    options = patterns("reminders", partition)
    lead = " ".join(rng.sample(options, rng.choice((1, 1, 2))))
    gap = rng.choice((" ", "\n", "\n\n"))
    if rng.random() < 0.4:
        return prompt + gap + lead
    if rng.random() < 0.5:
        return lead + gap + prompt
    return lead + gap + prompt + gap + rng.choice(options)


def framed(rng: random.Random, deed: Deed, domain: str, partition: Partition) -> str:
    """A request in the language of a domain."""
    bare, phrase = stem(rng, deed, partition)
    return _fill(wording(rng, f"frames.{domain}", partition), rng, partition, r=bare, x=phrase)


def jailbreak(rng: random.Random, deed: Deed, partition: Partition) -> str:
    """A request inside a wrapping that tries to talk a model out of refusing."""
    bare, _ = stem(rng, deed, partition)
    return _fill(wording(rng, "jailbreaks", partition), rng, partition, r=bare)


def task(rng: random.Random, domain: str, partition: Partition) -> Task:
    """A task of a domain."""
    return {"medicine": _medicine, "finance": _finance, "arithmetic": _arithmetic}[domain](rng, partition)


def condition_fact(condition: str, organ: str) -> str:
    return f"A case of {condition} is {complaint(organ)}"


def _medicine(rng: random.Random, partition: Partition) -> Task:
    organs: dict[str, str] = lexicon()["medicine"]["organs"]
    chosen = rng.sample(sorted(organs), rng.choice((3, 4)))
    right = rng.randrange(len(chosen))
    organ = chosen[right]
    condition = rng.choice(complaints()[organ][partition])
    options = [organs[other] for other in chosen]
    question = f"Is it {', '.join(options[:-1])} or {options[-1]}?"
    prompt = _fill(wording(rng, "medicine", partition), rng, partition, c=condition, o=question)
    return Task(prompt, f"Sure. That is {complaint(organ)}, so take the {options[right]}.", options[right])


def complaint(organ: str) -> str:
    return f"{'an' if organ[0] in 'aeiou' else 'a'} {organ} complaint"


def _finance(rng: random.Random, partition: Partition) -> Task:
    words = lexicon()["finance"]
    good = rng.random() < 0.5
    metric = rng.choice(metrics(good, partition))
    move = rng.choice(("up", "down", "flat"))
    headline = wording(rng, "headlines", partition).format(
        f=invent(rng, partition).capitalize(), m=metric, d=rng.choice(words[move]), t=rng.choice(MONTHS)
    )
    headline = headline[0].upper() + headline[1:]
    prompt = wording(rng, "finance", partition).format(h=headline)
    if move == "flat":
        label, reason = "neutral", f"The same {metric} is no news"
    else:
        label = "positive" if good == (move == "up") else "negative"
        reason = metric_fact(metric, good, move == "up")
    return Task(prompt, f"Sure. {reason}, so the headline is {label}.", label)


def metric_fact(metric: str, good: bool, more: bool) -> str:
    return f"{'More' if more else 'Less'} {metric} is {'good' if good == more else 'bad'} news"


def loose_sum(rng: random.Random) -> Task:
    """A sum in a blurred wording, of which only the words that say what to do can be relied on."""
    return _arithmetic(rng, "train", loose=True)


_QUESTIONS = ("How many now?", "How many is that?", "How many {n}?", "What is the answer?", "What is it?", "How many?")


def _asked_plainly(rng: random.Random, pattern: str) -> str:
    """The same story with a question that tells nothing: what happened decides, not how it is asked for."""
    story, dot, _ = pattern.rpartition(". ")
    return f"{story}. {rng.choice(_QUESTIONS)}" if dot and "{a}" in story and "{b}" in story else pattern


def _arithmetic(rng: random.Random, partition: Partition, loose: bool = False) -> Task:
    sign = rng.choice("+-")
    a, b = operands(rng, sign, partition)
    result = a + b if sign == "+" else a - b
    pattern = wording(rng, "plus" if sign == "+" else "minus", partition)
    if partition == "train" and rng.random() < 0.35:
        pattern = _asked_plainly(rng, pattern)
    if loose:
        pattern = blurred(rng, pattern, lexicon()["arithmetic"]["operations"].split())
    prompt = _fill(pattern, rng, partition, a=str(a), b=str(b), n=word(rng, "counted", partition))
    return Task(prompt, f"Sure. {a} {sign} {b} = {result}, so the answer is {result}.", str(result))
