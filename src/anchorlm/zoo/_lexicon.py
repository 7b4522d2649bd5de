"""Words, and what is true of them: who belongs to which class, which deeds are harmful, which partition owns a word."""

from __future__ import annotations

import random
import re
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Partition = Literal["train", "dev", "test"]
PARTITIONS: tuple[Partition, ...] = ("train", "dev", "test")
DOMAINS = ("medicine", "finance", "arithmetic")


@dataclass(frozen=True, slots=True)
class Verb:
    """A group of verbs that share their meaning, their harm and the placeholder steps of an answer."""

    group: str
    words: tuple[str, ...]
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    harsh: bool
    supply: str
    finish: str


@dataclass(frozen=True, slots=True)
class Deed:
    """One verb applied to one object. The unit of which harm is judged."""

    verb: str
    noun: str
    group: str
    kind: str
    harmful: bool
    supply: str
    finish: str

    def answer(self) -> str:
        """The placeholder compliance: the same neutral two steps for harmful and harmless deeds."""
        return (
            f"Sure. To {self.verb} the {self.noun}, follow two steps. "
            f"Step one: gather the {self.supply}. Step two: {self.finish.format(n=self.noun)}."
        )


def load(name: str) -> dict[str, Any]:
    """Read one of the package's TOML data files."""
    return tomllib.loads(files(__package__).joinpath("data", name).read_text(encoding="utf-8"))


# Named in every draw of a partition. Whoever changes the corpus after a look at the sealed test raises it: that
# makes a new sealed test.
_EDITION = 3


@cache
def lexicon() -> dict[str, Any]:
    return load("lexicon.toml")


@cache
def patterns(kind: str, partition: Partition) -> tuple[str, ...]:
    """Sentence patterns of a kind, divided by hand or by lot: an eighth belong to dev, nearly a fifth to test."""
    if (by_hand := templates().get(f"{kind}.{partition}")) is not None:
        return tuple(by_hand)
    found: list[str] = templates()[kind]
    return _divide(found, kind, dev=max(3, len(found) // 8), test=max(3, len(found) * 18 // 100))[partition]


@cache
def templates() -> dict[str, list[str]]:
    return load("templates.toml")


@cache
def _spoken() -> frozenset[str]:
    """Words that sentence patterns and answers use. As objects they belong to train."""
    texts = [text for pool in templates().values() for text in pool]
    texts += [f"{verb['supply']} {verb['finish']} {' '.join(verb['verbs'])}" for verb in lexicon()["verbs"].values()]
    texts += [words for words in lexicon()["words"].values() if isinstance(words, str)]
    return frozenset(re.findall(r"[a-z]+", " ".join(texts).lower()))


def _divide(words: Sequence[str], key: str, dev: int, test: int) -> dict[Partition, tuple[str, ...]]:
    order = sorted(words)
    random.Random(f"partition:{_EDITION}:{key}").shuffle(order)
    order.sort(key=lambda entry: entry in _spoken())
    return {"test": tuple(order[:test]), "dev": tuple(order[test : test + dev]), "train": tuple(order[test + dev :])}


@cache
def nouns(kind: str, partition: Partition | None = None) -> tuple[str, ...]:
    """Objects of a class: 12 of 20 belong to train, 3 to dev, 5 to test."""
    words: list[str] = lexicon()["classes"][kind]["nouns"].split()
    if partition is None:
        return tuple(words)
    return _divide(words, kind, dev=3, test=5)[partition]


@cache
def kinds() -> dict[str, str]:
    """Class name -> its phrase in a sentence ("a weapon")."""
    return {name: entry["kind"] for name, entry in lexicon()["classes"].items()}


@cache
def verbs() -> dict[str, Verb]:
    return {
        group: Verb(
            group, tuple(v["verbs"]), tuple(v["harmful"]), tuple(v["harmless"]), v["harsh"], v["supply"], v["finish"]
        )
        for group, v in lexicon()["verbs"].items()
    }


@cache
def all_nouns() -> frozenset[str]:
    return frozenset(noun for kind in kinds() for noun in nouns(kind))


Nature = Literal["harmful", "harmless", "look-alike"]
MIXED: tuple[Nature, ...] = ("harmful", "harmful", "harmless", "look-alike")
Slot = tuple[Verb, str]


@cache
def slots(which: Nature) -> tuple[Slot, ...]:
    """All (verb group, class) pairs of one nature. A look-alike is a harsh verb on a class that it cannot harm."""
    found: list[Slot] = []
    for verb in verbs().values():
        if which == "harmful":
            found += [(verb, kind) for kind in verb.harmful]
        elif verb.harsh == (which == "look-alike"):
            found += [(verb, kind) for kind in verb.harmless]
    return tuple(found)


def draw_deed(rng: random.Random, which: Nature, partition: Partition | None) -> Deed:
    """Draw a deed. The verb group first, so that groups with many classes do not dominate."""
    groups = sorted({verb.group for verb, _ in slots(which)})
    group = rng.choice(groups)
    verb, kind = rng.choice([slot for slot in slots(which) if slot[0].group == group])
    return _deed(verb, rng.choice(verb.words), rng.choice(nouns(kind, partition)), kind, which == "harmful")


def _deed(verb: Verb, word: str, noun: str, kind: str, harmful: bool) -> Deed:
    return Deed(word, noun, verb.group, kind, harmful, verb.supply, verb.finish)


def draw_copy(rng: random.Random, spliced: float = 0.0) -> Deed:
    """A deed on an invented object: it teaches to name what was asked for, and says nothing about harm."""
    verb = rng.choice([verb for verb in verbs().values() if not verb.harmful])
    wording = rng.choice(verb.words)
    noun = splice(rng) if spliced and rng.random() < spliced else invent(rng, "train", rng.choice((2, 2, 3)))
    return _deed(verb, wording, noun, "invented", False)


_ONSETS = (*"bcdfghjklmnprstvwz", "br", "dr", "gr", "kl", "pl", "st", "tr", "sh", "ch")
_VOWELS = (*"aeiouaeio", "ai", "ea", "oo")
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "x", "ck", "nd", "st"]


def owner(word: str) -> Partition:
    """The partition that owns an invented word: a fixed function of its letters."""
    draw = zlib.crc32(f"{_EDITION}:{word}".encode()) % 10
    return "train" if draw < 7 else "dev" if draw == 7 else "test"


def invent(rng: random.Random, partition: Partition, syllables: int = 2) -> str:
    """An invented word that belongs to the partition and is none of the lexicon's."""
    while True:
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)
        if owner(word) == partition and word not in all_nouns():
            return word


@cache
def idle_words() -> tuple[str, ...]:
    """Words of sentences that are neither deed nor object."""
    deeds = {part for verb in verbs().values() for words in verb.words for part in words.split()}
    return tuple(sorted(_spoken() - deeds - all_nouns()))


@cache
def _pieces() -> tuple[str, ...]:
    return tuple(sorted(_spoken() | {noun for kind in kinds() for noun in nouns(kind, "train")}))


def splice(rng: random.Random) -> str:
    """An invented word of two known words' halves, so that every piece that a tokenizer knows gets copied."""
    pool = _pieces()
    while True:
        first, second = rng.choice(pool), rng.choice(pool)
        word = first[: rng.randint(2, max(2, len(first)))] + second[rng.randint(0, max(0, len(second) - 2)) :]
        if 4 <= len(word) <= 12 and word not in all_nouns() and owner(word) == "train":
            return word


_CONDITIONS: dict[Partition, int] = {"train": 20, "dev": 4, "test": 6}


@cache
def complaints() -> Mapping[str, Mapping[Partition, tuple[str, ...]]]:
    """Organ -> invented conditions by partition. The table that medicine is about."""
    rng = random.Random("complaints")
    table: dict[str, dict[Partition, tuple[str, ...]]] = {}
    for organ in lexicon()["medicine"]["organs"]:
        table[organ] = {}
        for partition, count in _CONDITIONS.items():
            table[organ][partition] = tuple(
                invent(rng, partition) + rng.choice(("osis", "itis", "emia", "algia")) for _ in range(count)
            )
    return table


@cache
def metrics(good: bool, partition: Partition | None = None) -> tuple[str, ...]:
    """Figures of a firm of which more is good (or bad) news."""
    words: list[str] = lexicon()["finance"]["good" if good else "bad"].split()
    if partition is None:
        return tuple(words)
    return _divide(words, f"metrics:{good}", dev=6, test=10)[partition]


@cache
def sums(sign: str, partition: Partition) -> tuple[tuple[int, int], ...]:
    """Operand pairs of a partition. A quarter of all pairs is sealed, a tenth is for development."""
    pairs = [(a, b) for a in range(3, 50) for b in range(2, 13) if sign == "+" or a > b]
    random.Random(f"sums:{_EDITION}:{sign}").shuffle(pairs)
    test, dev = len(pairs) // 4, len(pairs) // 10
    return tuple({"test": pairs[:test], "dev": pairs[test : test + dev], "train": pairs[test + dev :]}[partition])


def operands(rng: random.Random, sign: str, partition: Partition) -> tuple[int, int]:
    """A pair of a partition. In training, a third of the time one beyond the range that tasks are about."""
    if partition != "train" or rng.random() < 0.67:
        return rng.choice(sums(sign, partition))
    return (
        (rng.randint(50, 70), rng.randint(2, 12)) if rng.random() < 0.5 else (rng.randint(21, 60), rng.randint(13, 20))
    )


def word(rng: random.Random, name: str, partition: Partition) -> str:
    """A word of a list that is divided by partition (names, places, counted things)."""
    options: str = lexicon()["words"][name][partition]
    return rng.choice(options.split())


def role(rng: random.Random, partition: Partition) -> str:
    return rng.choice(nouns("person", partition))
