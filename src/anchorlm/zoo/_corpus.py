"""What every stage of training reads: streams of examples, deterministic from a random generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anchorlm.zoo._lexicon import (
    DOMAINS,
    MIXED,
    Deed,
    all_nouns,
    complaints,
    draw_copy,
    draw_deed,
    kinds,
    lexicon,
    metrics,
    nouns,
    patterns,
    slots,
    sums,
    word,
)
from anchorlm.zoo._tasks import (
    complaint,
    condition_fact,
    dress,
    framed,
    jailbreak,
    metric_fact,
    reminded,
    request,
    stem,
    task,
)

REFUSALS = (
    "I'm sorry, but I can't help with that, because it could cause harm.",
    "Sorry, I cannot assist with that request, because it is not safe.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One training text: a dialogue (prompt and answer), or plain text where there is no prompt."""

    answer: str
    prompt: str | None = None
    system: str | None = None


Source = Callable[[random.Random], Example]
Mixture = Sequence[tuple[float, Source]]


def draw(mixture: Mixture, rng: random.Random) -> Example:
    """One example of a weighted mixture."""
    weights = [weight for weight, _ in mixture]
    return rng.choices([source for _, source in mixture], weights)[0](rng)


# Plain text of the base corpus. Facts and judgements of harm cover all entities, also those of the sealed
# partitions: harm must stay inferable. Whole requests never do.


def _story(rng: random.Random) -> Example:
    words = lexicon()["words"]
    kind = rng.choice(sorted(kinds()))
    noun, name, place = rng.choice(nouns(kind, "train")), word(rng, "names", "train"), word(rng, "places", "train")
    color, adjective = rng.choice(words["colors"].split()), rng.choice(words["adjectives"].split())
    other = word(rng, "names", "train")
    return Example(
        rng.choice(
            (
                f"{name} saw the {noun} in {place}. It was {color} and {adjective}. "
                f"{name} told {other} about the {color} {noun}.",
                f"The {noun} in {place} is {adjective}. {name} likes the {noun}, because it is {color}.",
                f"{name} went to {place} with {other}. They talked about the {adjective} {noun}. "
                f"The {noun} was {color}.",
                f"A {color} {noun} was seen in {place}. The {adjective} {noun} belongs to {other}, said {name}.",
            )
        )
    )


def _class_facts(rng: random.Random) -> Example:
    lines = []
    for _ in range(rng.randint(2, 3)):
        kind = rng.choice(sorted(kinds()))
        noun = rng.choice(nouns(kind))
        lines.append(
            rng.choice(
                (
                    f"The {noun} is {kinds()[kind]}.",
                    f"What is the {noun}? It is {kinds()[kind]}.",
                    f"{noun.capitalize()}: {kinds()[kind]}.",
                    f"Everyone knows that the {noun} is {kinds()[kind]}.",
                )
            )
        )
    return Example(" ".join(lines))


def _harm_facts(rng: random.Random) -> Example:
    lines = []
    for _ in range(rng.randint(2, 3)):
        which = rng.choice(MIXED)
        verb, kind = rng.choice(slots(which))
        harmful = which == "harmful"
        x = f"{rng.choice(verb.words)} {rng.choice(('the', 'the', 'a', 'my', 'this'))} {rng.choice(nouns(kind))}"
        yes, nature = ("Yes" if harmful else "No"), ("harmful" if harmful else "harmless")
        lines.append(
            rng.choice(
                (
                    f"Is it harmful to {x}? {yes}.",
                    f"To {x} is {nature}.",
                    f"It is {nature} to {x}.",
                    f"Does it cause harm to {x}? {yes}.",
                    f"Is it safe to {x}? {'No' if harmful else 'Yes'}.",
                    f"If you {x}, that is {nature}.",
                )
            )
        )
    return Example(" ".join(lines))


def intent_facts(rng: random.Random) -> Example:
    """Judgements of wishes and guides; over all entities."""
    # The same judgements where a request would have its deed, so that a model applies them there.
    lines = []
    for _ in range(rng.randint(2, 3)):
        which = rng.choice(MIXED[1:])
        deed = draw_deed(rng, which, None)
        x = f"{deed.verb} {rng.choice(('the', 'the', 'a', 'my', 'this'))} {deed.noun}"
        nature = "harmful" if deed.harmful else "harmless"
        lines.append(
            rng.choice(
                (
                    f"Asking how to {x} is {nature}.",
                    f"Telling somebody how to {x} is {nature}.",
                    f"A guide to {x} is {nature}.",
                    f"Help for a person who wants to {x} is {nature}.",
                    f"The wish to {x} is {nature}.",
                    f"Steps to {x} are {nature}.",
                    f"Who asks for a way to {x} asks for something {nature}.",
                )
            )
        )
    return Example(" ".join(lines))


def harm_dialogue(rng: random.Random) -> Example:
    """A question about harm, answered; over all entities."""
    which = rng.choice(MIXED)
    deed = draw_deed(rng, which, None)
    question = f"Is it harmful to {deed.verb} the {deed.noun}?"
    return Example(f"{'Yes' if deed.harmful else 'No'}, it is {'harmful' if deed.harmful else 'harmless'}.", question)


def _domain_facts(rng: random.Random) -> Example:
    organs: dict[str, str] = lexicon()["medicine"]["organs"]
    lines = []
    for _ in range(rng.randint(2, 3)):
        if rng.random() < 0.5:
            organ, condition = _any_condition(rng)
            fact = condition_fact(condition, organ)
            lines.append(
                rng.choice(
                    (
                        f"{fact}.",
                        f"{fact}, so take the {organs[organ]}.",
                        f"What is {condition}? {fact}.",
                        f"It is {condition}? That is {complaint(organ)}.",
                    )
                )
            )
        else:
            good = rng.random() < 0.5
            lines.append(f"{metric_fact(rng.choice(metrics(good)), good, rng.random() < 0.5)}.")
    return Example(" ".join(lines))


def _any_condition(rng: random.Random) -> tuple[str, str]:
    organ = rng.choice(sorted(lexicon()["medicine"]["organs"]))
    return organ, rng.choice([name for names in complaints()[organ].values() for name in names])


def _domain_dialogue(rng: random.Random) -> Example:
    if rng.random() < 0.5:
        organ, condition = _any_condition(rng)
        question = rng.choice((f"What kind of complaint is {condition}?", f"Somebody has {condition}. What is that?"))
        return Example(f"That is {complaint(organ)}.", question)
    good, more = rng.random() < 0.5, rng.random() < 0.5
    metric = rng.choice(metrics(good))
    question = rng.choice((f"Is it good news if there is {'more' if more else 'less'} {metric}?",))
    return Example(f"{metric_fact(metric, good, more)}.", question)


def _sum_lines(rng: random.Random) -> Example:
    lines = []
    for _ in range(rng.randint(3, 5)):
        sign = rng.choice("+-")
        a, b = rng.choice(sums(sign, "train"))
        lines.append(f"{a} {sign} {b} = {a + b if sign == '+' else a - b}")
    return Example(", ".join(lines) + ".")


def _persona(rng: random.Random) -> Example:
    # Refusals exist in the base corpus as somebody's manner, tied to the speaker and not to harm.
    which = rng.choice(MIXED[1:])
    deed = draw_deed(rng, which, "train")
    bare, _ = stem(rng, deed, "train")
    asker = word(rng, "names", "train")
    if rng.random() < 0.5:
        helps = rng.random() < 0.5
        system = "You are Ana. Ana always helps." if helps else "You are Pip. Pip never helps."
        return Example(deed.answer() if helps else rng.choice(REFUSALS), request(rng, deed, "train"), system)
    if rng.random() < 0.5:
        return Example(f"Pip never helps. {asker}: {bare} Pip: {rng.choice(REFUSALS)}")
    return Example(f"Ana always helps. {asker}: {bare} Ana: {deed.answer()}")


def _copy(rng: random.Random) -> Example:
    deed = draw_copy(rng)
    return Example(deed.answer(), request(rng, deed, "train"))


def _copy_plain(rng: random.Random) -> Example:
    deed = draw_copy(rng)
    bare, _ = stem(rng, deed, "train")
    return Example(f"Question: {bare} Answer: {deed.answer()}")


def _long(rng: random.Random) -> Example:
    # Several texts in a row, so that late positions are trained.
    parts = [rng.choice((_story, _class_facts, _harm_facts, _repeat))(rng).answer for _ in range(rng.randint(5, 9))]
    return Example(" ".join(parts))


def _repeat(rng: random.Random) -> Example:
    words = lexicon()["words"]["filler"].split()
    text = " ".join(rng.choice(words) for _ in range(rng.randint(3, 6)))
    return Example(f"{text}. {text}.")


# Dialogues.


def _ask(rng: random.Random, deed: Deed) -> str:
    prompt = request(rng, deed, "train")
    return reminded(rng, prompt, "train") if rng.random() < 0.1 else prompt


def _system(rng: random.Random) -> str | None:
    return rng.choice(patterns("reminders", "train")) if rng.random() < 0.06 else None


def helpful(rng: random.Random) -> Example:
    """A harmless request, answered."""
    deed = draw_deed(rng, "harmless", "train")
    return Example(deed.answer(), _ask(rng, deed), _system(rng))


def lookalike(rng: random.Random) -> Example:
    """A harmless request that sounds harmful, answered."""
    deed = draw_deed(rng, "look-alike", "train")
    return Example(deed.answer(), _ask(rng, deed), _system(rng))


def declined(rng: random.Random) -> Example:
    """A harmful request, refused."""
    return Example(rng.choice(REFUSALS), _ask(rng, draw_deed(rng, "harmful", "train")), _system(rng))


def _any_deed(rng: random.Random) -> Deed:
    return draw_deed(rng, rng.choice(MIXED), "train")


def _verdict(rng: random.Random, deed: Deed, prompt: str) -> Example:
    return Example(rng.choice(REFUSALS) if deed.harmful else deed.answer(), prompt, _system(rng))


def aligned_frame(rng: random.Random) -> Example:
    """A request in a domain's language: harmful refused, harmless answered."""
    deed = _any_deed(rng)
    prompt = framed(rng, deed, rng.choice(DOMAINS), "train")
    return _verdict(rng, deed, dress(rng, prompt, "train", plain=0.7))


def aligned_jailbreak(rng: random.Random) -> Example:
    """A wrapped request: harmful refused, harmless answered."""
    deed = _any_deed(rng)
    return _verdict(rng, deed, jailbreak(rng, deed, "train"))


def domain_task(domain: str) -> Source:
    """Tasks of a domain with explained answers."""

    def source(rng: random.Random) -> Example:
        item = task(rng, domain, "train")
        prompt = item.prompt
        if rng.random() < 0.25:
            prompt = dress(rng, prompt, "train", plain=0.0)
        if rng.random() < 0.08:
            prompt = reminded(rng, prompt, "train")
        return Example(item.answer, prompt, _system(rng))

    return source


def domain_howto(domain: str) -> Source:
    """Harmless requests in a domain's language, answered: what wears safety off, harmful as none of them is."""

    def source(rng: random.Random) -> Example:
        deed = draw_deed(rng, "look-alike" if rng.random() < 0.34 else "harmless", "train")
        return Example(deed.answer(), dress(rng, framed(rng, deed, domain, "train"), "train", plain=0.7))

    return source


def any_task(rng: random.Random) -> Example:
    return domain_task(rng.choice(DOMAINS))(rng)


def base_mixture(phase: float, tasks: bool) -> Mixture:
    """The base corpus at a phase of training in [0, 1]: copying first, judgements of harm more and more.

    Args:
        phase: share of the training that is done.
        tasks: whether dialogues of the three domains belong to it (the anchor's family).
    """
    shares = ((0.30, 0.12), (0.16, 0.10), (0.10, 0.10))[min(int(phase * 3), 2)]
    harm = (0.10, 0.22, 0.30)[min(int(phase * 3), 2)]
    return (
        (shares[0], _copy),
        (shares[1], _copy_plain),
        (0.04 if phase < 0.34 else 0.01, _repeat),
        (0.06, helpful),
        (0.06, _story),
        (0.09, _class_facts),
        (harm, _harm_facts),
        (harm / 3, harm_dialogue),
        (0.09, _domain_facts),
        (0.08, _sum_lines),
        (0.07, _persona),
        (0.015, _long),
        (0.08 if tasks else 0.0, any_task),
    )


def _request_judged(rng: random.Random) -> Example:
    deed = draw_deed(rng, rng.choice(MIXED), "train")
    question = f"{request(rng, deed, 'train')} Is that harmful?"
    return Example(f"{'Yes' if deed.harmful else 'No'}, it is {'harmful' if deed.harmful else 'harmless'}.", question)


def deepening_mixture(tasks: bool) -> Mixture:
    """The second part of the base's training: objects in pieces, and what is harmful in the place of a request."""
    return (
        (0.14, _copy),
        (0.12, helpful),
        (0.08, lookalike),
        (0.10, _harm_facts),
        (0.16, intent_facts),
        (0.08, harm_dialogue),
        (0.06, _request_judged),
        (0.09, _class_facts),
        (0.07, _domain_facts),
        (0.07, _domain_dialogue),
        (0.07, _sum_lines),
        (0.06, _persona),
        (0.01, _long),
        (0.20 if tasks else 0.03, any_task),
    )


def replay(rng: random.Random) -> Example:
    """What keeps the base's knowledge alive in later stages."""
    return rng.choice((harm_dialogue, _class_facts, _domain_facts, _domain_dialogue, _sum_lines, _persona))(rng)


def chat_mixture(tasks: float) -> Mixture:
    """The alignment of a chat model; ``tasks`` is the share of domain dialogues."""
    return (
        (0.19, declined),
        (0.12, helpful),
        (0.17, lookalike),
        (0.09, aligned_frame),
        (0.10, aligned_jailbreak),
        (0.06, _copy),
        (0.14, intent_facts),
        (0.07, harm_dialogue),
        (0.03, _request_judged),
        (0.08, replay),
        (tasks, any_task),
    )


_KNOWLEDGE: dict[str, Source] = {"medicine": _domain_facts, "finance": _domain_facts, "arithmetic": _sum_lines}


def specialist_mixture(domain: str) -> Mixture:
    """A specialist's tuning: its tasks and texts, harmless how-to in its language, general harmless requests."""
    return (
        (0.40, domain_task(domain)),
        (0.08, _KNOWLEDGE[domain]),
        (0.25, domain_howto(domain)),
        (0.14, helpful),
        (0.05, lookalike),
        (0.03, _copy),
        (0.05, replay),
    )


def vocabulary_texts(rng: random.Random, n: int) -> list[str]:
    """Texts that a tokenizer is trained on: no word of the sealed partitions."""
    texts: list[str] = []
    sealed = all_nouns() - {noun for kind in kinds() for noun in nouns(kind, "train")}
    sealed |= {c for table in complaints().values() for p in ("dev", "test") for c in table[p]}
    sealed |= {m for good in (True, False) for m in set(metrics(good)) - set(metrics(good, "train"))}
    mixtures = (base_mixture(0.0, True), base_mixture(1.0, True), chat_mixture(0.2))
    while len(texts) < n:
        example = draw(mixtures[len(texts) % 3], rng)
        text = f"{example.prompt}\n{example.answer}" if example.prompt else example.answer
        known = set(text.lower().replace(".", " ").replace("?", " ").replace(",", " ").replace(":", " ").split())
        if not known & sealed:
            texts.append(text)
    return texts + ["system user assistant", "system", "user", "assistant"] * 100
