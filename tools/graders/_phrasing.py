"""Answers in words of our own: soft refusals, lectures, redirects, and answers that begin like a refusal."""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path

_ASKING = re.compile(
    r"^(?:how (?:do|can|could|would|should) (?:i|we|you)|(?:explain|describe|outline|show me|tell me|teach me)"
    r"(?: to me)? how (?:to|i can)|(?:give|tell|show) me (?:how|a way|ways|tips) (?:to|for)|"
    r"what(?:'s| is) (?:a|the) (?:good|best|easiest|right|smartest|proper|quickest) way (?:to|of)|help me|how to|"
    r"i (?:want|need|would like) to|can you)\s+",
    re.I,
)
_MAKING = re.compile(r"^(?:write|create|develop|draft|design|compose|generate|provide|suggest|invent)\b", re.I)
_YOURS = {"my": "your", "i": "you", "me": "you", "i'm": "you're", "our": "your", "we": "you", "mine": "yours",
          "myself": "yourself"}  # fmt: skip
_DOUBLED = re.compile(
    "get|set|cut|put|run|hit|dig|rob|stab|rig|plan|ship|strip|trap|tap|rip|mug|kidnap|skip|swap|shut|win|plug|spot|stop|"
    "drop|beg"
)

WORDS = tomllib.loads(Path(__file__).with_name("phrases.toml").read_text(encoding="utf-8"))


def deed(prompt: str) -> str | None:
    """What a prompt asks how to do, as "pick a lock". None where it asks in another way."""
    text = prompt.strip().rstrip("?.! ")
    if found := _ASKING.match(text):
        text = text[found.end() :]
    elif not _MAKING.match(text):
        return None
    words = [_YOURS.get(word.lower(), word) for word in text.split()]
    if not words or not words[0].isalpha() or words[0].lower().endswith("ing") or len(words) > 16:
        return None
    return " ".join([words[0].lower(), *words[1:]])


def doing(phrase: str) -> str:
    """The phrase "pick a lock" as "picking a lock"."""
    verb, _, rest = phrase.partition(" ")
    if _DOUBLED.fullmatch(verb):
        verb += verb[-1]
    elif verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    return f"{verb}ing {rest}".strip()


def refusal(rng: random.Random, phrase: str) -> str:
    """A refusal to do what is asked, mostly a soft one."""
    kind = rng.random()
    if kind < 0.15:
        return _premise(rng)
    if kind < 0.27:
        return _private(rng)
    parts = [rng.choice(WORDS["explicit"] if kind < 0.4 else WORDS["openings"])]
    parts += rng.sample(WORDS["lecture"], rng.choice((0, 1, 1, 2, 2, 3)))
    parts += rng.sample(WORDS["redirects"], rng.choice((0, 1, 1, 2)))
    if len(parts) == 1:
        parts.append(rng.choice(WORDS["lecture"] + WORDS["redirects"]))
    text = _filled(rng, " ".join(parts), phrase)
    return f"{text}\n\n{rng.choice(WORDS['safe_lists'])}" if rng.random() < 0.12 else text


def caveated(rng: random.Random, answer: str) -> str:
    """An answer with words about it that a refusal may have as well."""
    kind = rng.random()
    if kind < 0.6:
        return f"{rng.choice(WORDS['caveats'])} {answer}"
    if kind < 0.75:
        return f"{answer} {rng.choice(WORDS['afterthoughts'])}"
    return f"{rng.choice(WORDS['caveats'])} {answer} {rng.choice(WORDS['afterthoughts'])}"


def turned(rng: random.Random, answer: str) -> str:
    """A refusal that then answers all the same."""
    return f"{rng.choice(WORDS['turns'])} {answer}"


def _premise(rng: random.Random) -> str:
    text = " ".join([rng.choice(WORDS["premises"]), *rng.sample(WORDS["lecture"], rng.choice((0, 1, 2)))])
    people = rng.choice(WORDS["people"])
    text = text.replace("{people}", people).replace("{People}", people[0].upper() + people[1:])
    return _filled(rng, text.replace("{done}", rng.choice(WORDS["done"])), "do this")


def _private(rng: random.Random) -> str:
    whose, what = rng.choice(WORDS["whose"]), rng.choice(WORDS["what"])
    text = " ".join([rng.choice(WORDS["private"]), *rng.sample(WORDS["privacy"], rng.choice((0, 1, 2, 2)))])
    text = text.replace("{whose}", whose).replace("{Whose}", whose[0].upper() + whose[1:]).replace("{what}", what)
    return _filled(rng, text, "do this")


def _filled(rng: random.Random, text: str, phrase: str) -> str:
    ing = doing(phrase)
    good, bad = rng.sample(WORDS["good"], 2), rng.sample(WORDS["bad"], 2)
    for slot, word in (("{to}", phrase), ("{ing}", ing), ("{Ing}", ing[0].upper() + ing[1:]), ("{good}", good[0]),
                       ("{good2}", good[1]), ("{bad}", bad[0]), ("{bad2}", bad[1])):  # fmt: skip
        text = text.replace(slot, word)
    return text
