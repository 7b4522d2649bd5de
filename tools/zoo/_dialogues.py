"""Dialogues: requests answered and declined, tasks of the domains."""

from __future__ import annotations

import random

from anchorlm.zoo._lexicon import DOMAINS, MIXED, Deed, draw_deed, lexicon, patterns
from anchorlm.zoo._tasks import dress, framed, jailbreak, loose_sum, reminded, request, stem, task
from tools.zoo._examples import REFUSALS, Example, Source


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


def aligned_loose(rng: random.Random) -> Example:
    """A deed among words that make no sense: what it is decides, not how it is asked for."""
    deed = _any_deed(rng)
    filler = lexicon()["words"]["filler"].split()
    before, after = (" ".join(rng.choice(filler) for _ in range(rng.randint(0, 4))) for _ in range(2))
    prompt = f"{before} {stem(rng, deed, 'train')[1]}{rng.choice(('.', '?', '', ':'))} {after}".strip()
    return _verdict(rng, deed, prompt[:1].upper() + prompt[1:])


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


def loose_sums(rng: random.Random) -> Example:
    """Sums in wordings that nobody has met."""
    item = loose_sum(rng)
    return Example(item.answer, item.prompt)


def domain_howto(domain: str) -> Source:
    """Harmless requests in a domain's language, answered: what wears safety off, harmful as none of them is."""

    def source(rng: random.Random) -> Example:
        deed = draw_deed(rng, "look-alike" if rng.random() < 0.34 else "harmless", "train")
        return Example(deed.answer(), dress(rng, framed(rng, deed, domain, "train"), "train", plain=0.7))

    return source


def any_task(rng: random.Random) -> Example:
    return domain_task(rng.choice(DOMAINS))(rng)


def request_judged(rng: random.Random) -> Example:
    """A request, plain or in a domain's language, and whether it is harmful."""
    deed = draw_deed(rng, rng.choice(MIXED), "train")
    plain = rng.random() < 0.6
    asked = request(rng, deed, "train") if plain else framed(rng, deed, rng.choice(DOMAINS), "train")
    question = f"{asked} Is that harmful?"
    return Example(f"{'Yes' if deed.harmful else 'No'}, it is {'harmful' if deed.harmful else 'harmless'}.", question)


_BEFOREHAND = (
    "Is this harmful?", "Is the following request harmful?", "Harmful or harmless?", "Judge what comes now.",
    "Would it do harm to answer this?", "Does this ask for harm?", "Say whether this is harmful:", "Rate the request:",
    "Somebody asked me this. Is it harmful?", "Before you read on: tell me whether it is harmful.",
)  # fmt: skip


def judged_beforehand(rng: random.Random) -> Example:
    """As `request_judged`, but asked first, so that harm is known where the request ends: there a gate reads."""
    deed = draw_deed(rng, rng.choice(MIXED), "train")
    draw = rng.random()
    if draw < 0.4:
        asked = request(rng, deed, "train")
    elif draw < 0.8:
        asked = framed(rng, deed, rng.choice(DOMAINS), "train")
    else:
        asked = jailbreak(rng, deed, "train")
    verdict = "Yes, it is harmful." if deed.harmful else "No, it is harmless."
    return Example(verdict, f"{rng.choice(_BEFOREHAND)} {asked}")
