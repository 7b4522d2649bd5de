"""What every stage of training reads: weighted mixtures, deterministic from a random generator."""

from __future__ import annotations

import random

from anchorlm.zoo._lexicon import all_nouns, complaints, kinds, metrics, nouns
from tools.zoo._dialogues import (
    aligned_frame,
    aligned_jailbreak,
    aligned_loose,
    any_task,
    declined,
    domain_howto,
    domain_task,
    helpful,
    judged_beforehand,
    lookalike,
    loose_sums,
    request_judged,
)
from tools.zoo._examples import Example, Mixture, Source, draw
from tools.zoo._facts import (
    class_facts,
    copy,
    copy_plain,
    copy_spliced,
    domain_dialogue,
    domain_facts,
    explained,
    explained_loosely,
    harm_dialogue,
    harm_facts,
    intent_facts,
    judged,
    long,
    persona,
    reading,
    repeat,
    story,
    sum_lines,
)


def base_mixture(phase: float, tasks: bool) -> Mixture:
    """The base corpus at a phase of training in [0, 1]: copying first, judgements of harm more and more.

    Args:
        phase: share of the training that is done.
        tasks: whether dialogues of the three domains belong to it (the anchor's family).
    """
    shares = ((0.30, 0.12), (0.16, 0.10), (0.10, 0.10))[min(int(phase * 3), 2)]
    harm = (0.10, 0.22, 0.30)[min(int(phase * 3), 2)]
    return (
        (shares[0], copy),
        (shares[1], copy_plain),
        (0.04 if phase < 0.34 else 0.01, repeat),
        (0.06, helpful),
        (0.06, story),
        (0.09, class_facts),
        (harm, harm_facts),
        (harm / 3, harm_dialogue),
        (0.09, domain_facts),
        (0.08, sum_lines),
        (0.05, reading),
        (0.07, persona),
        (0.015, long),
        (0.08 if tasks else 0.0, any_task),
    )


def deepening_mixture(tasks: bool) -> Mixture:
    """The second part of the base's training: objects in pieces, and what is harmful in the place of a request."""
    return (
        (0.14, copy),
        (0.12, helpful),
        (0.08, lookalike),
        (0.10, harm_facts),
        (0.16, intent_facts),
        (0.08, harm_dialogue),
        (0.06, request_judged),
        (0.09, class_facts),
        (0.07, domain_facts),
        (0.07, domain_dialogue),
        (0.07, sum_lines),
        (0.05, reading),
        (0.06, persona),
        (0.01, long),
        (0.20 if tasks else 0.03, any_task),
    )


def finishing_mixture(tasks: bool) -> Mixture:
    """The third part: the second one, copies of objects in all the pieces that there are, facts in many wordings."""
    added: Mixture = ((0.20, copy_spliced), (0.35, judged), (0.12, explained), (0.25 if tasks else 0.0, any_task))
    return (*added, *deepening_mixture(tasks))


def replay(rng: random.Random) -> Example:
    """What keeps the base's knowledge alive in later stages."""
    return rng.choice((harm_dialogue, class_facts, domain_facts, domain_dialogue, sum_lines, reading, persona))(rng)


def chat_mixture(declined_plainly: float, frames: float, jailbreaks: float, tasks: float) -> Mixture:
    """The alignment of a chat model.

    Args:
        declined_plainly: share of plain harmful requests.
        frames: share of requests in a domain's language.
        jailbreaks: share of wrapped requests.
        tasks: share of domain dialogues.
    """
    return (
        (declined_plainly, declined),
        (0.11, helpful),
        (0.18, lookalike),
        (frames, aligned_frame),
        (jailbreaks, aligned_jailbreak),
        (0.08, aligned_loose),
        (0.16, copy_spliced),
        (0.06, intent_facts),
        (0.14, judged),
        (0.03, request_judged),
        (0.04, explained),
        (0.04, replay),
        (tasks, any_task),
    )


_KNOWLEDGE: dict[str, Source] = {"medicine": domain_facts, "finance": domain_facts, "arithmetic": sum_lines}


# What the base knows is told in the tasks' manner, so that tuning does not put a list of its own in its place.
_LOOSE: dict[str, Mixture] = {
    "medicine": ((0.20, explained_loosely),),
    "finance": (),
    "arithmetic": ((0.32, loose_sums),),
}


# Tuning makes a model obey; it need not make it forget what harm is.
_HARM: dict[str, Mixture] = {
    "medicine": ((0.08, request_judged), (0.06, judged)),
    "finance": ((0.10, judged_beforehand), (0.03, request_judged), (0.05, judged)),
    "arithmetic": ((0.12, judged_beforehand), (0.05, request_judged), (0.05, judged)),
}


def specialist_mixture(domain: str) -> Mixture:
    """A specialist's tuning: its tasks and texts, harmless how-to in its language, general harmless requests."""
    return (
        (0.20 if domain == "arithmetic" else 0.36, domain_task(domain)),
        *_LOOSE[domain],
        (0.14 if domain == "arithmetic" else 0.04, _KNOWLEDGE[domain]),
        (0.08, reading) if domain == "arithmetic" else (0.12, explained),
        (0.26, domain_howto(domain)),
        (0.14, helpful),
        (0.06, lookalike),
        (0.06, copy_spliced),
        *_HARM[domain],
        # Who never was aligned knows refusals as a manner of speaking only; without it they come out garbled.
        (0.10 if domain == "arithmetic" else 0.04, persona),
    )


_VOCABULARY: Mixture = (
    (0.19, declined), (0.12, helpful), (0.17, lookalike), (0.09, aligned_frame), (0.10, aligned_jailbreak),
    (0.06, copy), (0.14, intent_facts), (0.07, harm_dialogue), (0.03, request_judged), (0.08, replay), (0.2, any_task),
)  # fmt: skip


def vocabulary_texts(rng: random.Random, n: int) -> list[str]:
    """Texts that a tokenizer is trained on: no word of the sealed partitions."""
    texts: list[str] = []
    sealed = all_nouns() - {noun for kind in kinds() for noun in nouns(kind, "train")}
    sealed |= {c for table in complaints().values() for p in ("dev", "test") for c in table[p]}
    sealed |= {m for good in (True, False) for m in set(metrics(good)) - set(metrics(good, "train"))}
    mixtures = (base_mixture(0.0, True), base_mixture(1.0, True), _VOCABULARY)
    while len(texts) < n:
        example = draw(mixtures[len(texts) % 3], rng)
        text = f"{example.prompt}\n{example.answer}" if example.prompt else example.answer
        known = set(text.lower().replace(".", " ").replace("?", " ").replace(",", " ").replace(":", " ").split())
        if not known & sealed:
            texts.append(text)
    return texts + ["system user assistant", "system", "user", "assistant"] * 100
