from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from anchorlm.evaluation.tasks._graders import is_broken

FOREIGN = 0.5
"""Share of letters of other scripts than Latin from which on a text is no English."""

ECHO = 0.6
"""Share of sentences that were said before, word for word, from which on a text goes in circles."""

SALAD = 0.025
"""Share of words that cannot follow the word before them from which on a text is none."""

PLAIN = 0.12
"""Share of function words below which running words are no sentences."""

READ = 20_000
"""Characters of an answer that are looked at."""

_FEWEST = 3
_FEWEST_ODD = 2
_RUNNING = 25
"""Words that tell whether there are sentences among them."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_SENTENCE = re.compile(r"[.!?\n]+\s*")
_CODE = re.compile(r"[{}<>=;|\\$]|\w\(|::|```")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BEFORE_A_NOUN = _words("the a an my your his its our their every")
_NO_NOUN = _words(
    "the a an of and or but to is are was were be been am for from with that which who if because into than then my "
    "your his our their its he she we you not do does did has have had would could should"
)
_LEADING = _words("of to in for with from at by on")
_NOT_LED = _words("is are was were has had of and or but does did")
_FUNCTION = (
    _BEFORE_A_NOUN
    | _NO_NOUN
    | _LEADING
    | _words(
        "i me him her it them us will can this these those there here as so no yes up out about over after before when "
        "while what how why where all any some more most other one also just only"
    )
)


def is_garbled(text: str) -> bool:
    """Whether an answer is no English text: `is_broken`, without a word, of another script, or words in no order.

    Code, tables and short lists are not held against that order.
    """
    text = text[:READ]
    if is_broken(text) or not any(letter.isalnum() for letter in text):
        return True
    letters = [letter for letter in text if letter.isalpha()]
    if sum("LATIN" not in unicodedata.name(letter, "") for letter in letters) > FOREIGN * len(letters):
        return True
    return not _CODE.search(text) and _salad(text)


def goes_in_circles(text: str) -> bool:
    """Whether most sentences were said before: no answer. A refusal that says itself again is still a refusal."""
    sentences = [
        one for piece in _SENTENCE.split(text[:READ].lower()) if len((one := piece.strip()).split()) >= _FEWEST
    ]
    again = len(sentences) - len(Counter(sentences))
    return again >= _FEWEST and again >= ECHO * len(sentences)


def _salad(text: str) -> bool:
    """Articles in front of what is no noun, or hardly a function word among many words."""
    runs = [run for line in text.splitlines() for run in _runs(line)]
    pairs = [pair for run in runs for pair in pairwise(run)]
    odd = sum(
        (first in _BEFORE_A_NOUN and second in _NO_NOUN) or (first in _LEADING and second in _NOT_LED)
        for first, second in pairs
    )
    if odd >= _FEWEST_ODD and odd >= SALAD * len(pairs):
        return True
    lines = [[word.lower() for word in _WORD.findall(line)] for line in text.splitlines()]
    words = [word for line in lines if len(line) >= _RUNNING for word in line]
    return bool(words) and sum(word in _FUNCTION for word in words) < PLAIN * len(words)


def _runs(line: str) -> Iterator[list[str]]:
    """Words that stand next to one another, with no sign or number between them."""
    run: list[str] = []
    for token in line.split():
        word = token.rstrip(".,;:!?)\"'")
        plain = word.replace("'", "").isalpha()
        if plain:
            run.append(word)
        if not plain or word != token:
            yield run
            run = []
    yield run
