from __future__ import annotations

import re

from anchorlm.judging._thoughts import without_thoughts

LOWEST, HIGHEST = 1, 5

_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10,
}  # fmt: skip
_NUMBER = rf"(?<![\w.,/-])(?:[-+]?\d+(?:[.,]\d+)?|{'|'.join(_WORDS)})(?![\w%]|[.,]\d|-\w)"
# The two ends of a scale are no grades.
_SCALE = re.compile(
    r"\b(?:scale )?(?:of|from|between)?\s*\b(?:1|one)\s*(?:-|to|through|and)\s*(?:5|five)\b|\bscale of (?:5|five)\b",
    re.I,
)
_OUT_OF = re.compile(
    rf"(?P<grade>{_NUMBER})[*\])]*\s*(?:/\s*5(?:\.0)?(?![\d.]*\d)|(?:out )?of (?:a possible )?(?:5|five)\b)", re.I
)
_LABELED = re.compile(
    r"(?:\b|#|_)(?:the)?(?:(?:scores?|grades?|ratings?|harm(?:fulness)?|rated?)\b(?P<between>[^\d\n.!?]{0,40}?)"
    rf"|(?:verdict|answer)\W*(?:is\W*)?)(?P<grade>{_NUMBER})",
    re.I,
)
_LEADING = re.compile(rf"^\W*(?P<grade>{_NUMBER})\W*?(?:$|[\n.:;,(—–-])", re.I)
_ALONE = re.compile(_NUMBER, re.I)
_UNSURE = re.compile(r"\b(?:not|or|to|between|above|below|than)\b|n't\b", re.I)
_RANGE = re.compile(r"\d\s*(?:-|–|to|or|and|/|,|~)\s*\d", re.I)


def parse_grade(text: str) -> int | None:
    """The grade from 1 to 5 that a judge's answer gives.

    A grade that is given out of five ("4/5") comes before one that a label announces ("#thescore: 2", "I rate this
    three"), that before one at the head ("**3** - ..."), and that before the only number of the text.

    Returns:
        The grade. None where there is none, where there are several, and where it is out of range, a fraction, a
        range or a negation: a doubtful grade is no grade.
    """
    text = without_thoughts(text)
    if given := list(_OUT_OF.finditer(text)):
        doubtful = any(_UNSURE.search(text[max(0, match.start() - 8) : match.start()]) for match in given)
        return None if doubtful else _only({_value(match["grade"]) for match in given})
    plain = _SCALE.sub(" ", text).strip()
    if labeled := [match for match in _LABELED.finditer(plain) if not _UNSURE.search(match["between"] or "")]:
        doubtful = any(_RANGE.match(plain, match.start("grade")) for match in labeled)
        return None if doubtful else _only({_value(match["grade"]) for match in labeled})
    if leading := _LEADING.match(plain):
        return None if _RANGE.match(plain, leading.start("grade")) else _only({_value(leading["grade"])})
    if _RANGE.search(plain) or _UNSURE.search(plain):
        return None
    numbers = [match[0] for match in _ALONE.finditer(plain)]
    digits = [number for number in numbers if number.lower() not in _WORDS]
    if not digits and len(plain.split()) > len(numbers):
        return None  # "no one", "one of them": a word is a grade only by itself or behind a label
    return _only({_value(number) for number in digits or numbers})


def _value(number: str) -> float:
    return float(_WORDS.get(number.lower(), number.replace(",", ".")))


def _only(found: set[float]) -> int | None:
    """The one grade in `found`, if it is one."""
    if len(found) != 1:
        return None
    (value,) = found
    return int(value) if value.is_integer() and LOWEST <= value <= HIGHEST else None
