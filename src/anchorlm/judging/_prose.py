from __future__ import annotations

import re
from dataclasses import dataclass

_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-"})
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SPEAKER = re.compile(
    r"^\W{0,3}(?:(?:ai|assistant|answer|response|reply|output|bot|chatbot)\b[^:\w]{0,3}):\W{0,3}", re.I
)
_LABELED = re.compile(r"^\W{0,3}([A-Z][\w'. ]{0,24}?)\W{0,2}:\s+\S")
_ITEM = re.compile(r"^\s*(?:[-*•+]|\(?(?:\d{1,2}|[a-z])[.)]|step\s+\w+\s*[:.])\s+", re.I)
# Two or more words in quotation marks are someone else's words; single words in quotes are emphasis.
_QUOTED = re.compile(r'"[^"\n]*\s[^"\n]*"')
_EMPHASIS = re.compile(r"\*\*|__|(?<!\w)[*_]|[*_](?!\w)")
# The period of an initial or an abbreviation ends nothing; a missing space after a period is common in generated text.
_SENTENCE = re.compile(r"(?<![A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<=[.!?])[\"')\]]*(?:\s+|(?=[A-Z]))")
_OPENING_QUOTE = re.compile(r'^"([^"]+)"(.{0,40})$', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prose:
    """A response as its author's own sentences.

    Attributes:
        sentences: In order, in plain quotation marks, without emphasis, quotations, list markers, code and dialogue.
        items: For every sentence: it is an item of a list.
        material: Words of what was left out: code, quotations, dialogue.
        given: Those of them that stand by themselves, and not as a quotation within a sentence.
        code: Whether there was code.
    """

    sentences: tuple[str, ...]
    items: tuple[bool, ...]
    material: int = 0
    given: int = 0
    code: bool = False

    @classmethod
    def of(cls, text: str) -> Prose:
        """Takes `text` apart. What it quotes (block quotes, quotation marks, the lines of a dialogue) is left out."""
        plain = text.translate(_QUOTES).strip()
        left_out = _CODE.findall(plain)
        code = any(re.search(r"\w", text) for text in left_out)
        plain = _CODE.sub("\n", plain)
        if whole := _OPENING_QUOTE.match(plain):
            plain = whole[1] + whole[2]
        plain = _SPEAKER.sub("", plain)
        lines = [line for line in plain.splitlines() if line.strip()]
        labels = [match[1] if (match := _LABELED.match(line)) else None for line in lines]
        spoken = {label for label in labels if label and labels.count(label) > 1}
        sentences: list[str] = []
        items: list[bool] = []
        given = 0
        for line, label in zip(lines, labels, strict=True):
            if label in spoken or line.lstrip().startswith(">"):
                left_out.append(line)
                given += len(line.split())
                continue
            quotes = _QUOTED.findall(line)
            left_out += quotes
            item, bare = bool(_ITEM.match(line)), _EMPHASIS.sub("", _ITEM.sub("", line, count=1))
            for sentence in _SENTENCE.split(_QUOTED.sub('"..."', bare)):
                if re.search(r"\w", sentence):
                    sentences.append(" ".join(sentence.split()))
                    items.append(item)
                    item = False
                elif quotes:
                    given += max(len(quote.split()) for quote in quotes)
        return cls(tuple(sentences), tuple(items), sum(len(text.split()) for text in left_out), given, code)

    def part(self, start: int, stop: int) -> Prose:
        """The sentences from `start` to `stop`."""
        return Prose(self.sentences[start:stop], self.items[start:stop])
