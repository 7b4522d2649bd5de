from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from anchorlm.models._rendering import EndlessTemplateError, TemplateFailedError, TemplateRefusedError, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"<<?[^<>\n]{1,60}>>?|\[[^\[\]\n]{1,60}\]")
"""What brackets make stand out wherever it is written: `[INST]`, `<<SYS>>`, `<|im_end|>`."""

_LONGEST = 40
"""Characters of a label such as `### Instruction:`. A longer line is a sentence that the template says."""

_SIGNS = r"[ \t]*(?:[^\w\n\"]|_){0,16}"
"""What a line may begin with before a label: quotation (`> User:`), emphasis (`**User**:`), bullets, bars."""

_SENTINELS = ("Xq0zv", "Xq1zv", "Xq2zv", "Xq3zv", "Xq4zv")
_PROBES = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("user", "assistant"),
    ("user",),
)

_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухһԁԛԝӏΑΒΕΖΗΙΚΜΝΟΡΤΥΧον▁‗꞉∶ː։׃ǀ∣❘⟨⟩‹›❮❯ııſ│┃║┆┇┊┋╎╏▏▕⎮⏐‖∥¦〈˂ᐸ≺⟪《〈〉˃ᐳ≻⟫》〉",
    "ABESIJKMHOPCTYXaesijopcyxhdqwlABEZHIKMNOPTYXov__:::::|||<><><>iis||||||||||||||||<<<<<<<>>>>>>>",
)
"""Letters and signs that look like those of markers. What Unicode itself takes for variants comes next to them."""


@dataclass(frozen=True)
class TurnMarkers:
    """What a chat template writes between turns, found by looking at what it writes around known words.

    Attributes:
        controls: Added tokens of the tokenizer among it, special or ordinary ones.
        tags: Texts that open or end a turn wherever they stand.
        labels: Texts that do so at the start of a line (`User:`).
        inline: Labels that the template also writes within a line.
        joined: Labels that it also writes right behind a turn's last word (`### Human:` in Guanaco's).
        bare: Words that do so on a line of their own.
        stops: Ids with which the model's turn ends, first the one that the template writes there.
        stop_texts: Texts with which it does.
    """

    controls: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    inline: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()
    bare: frozenset[str] = frozenset()
    stops: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()

    def neutral(self, text: str) -> str:
        """`text` with the words of every marker in it in quotation marks: `User:` becomes `"User":`.

        So a reader, and a model, sees something that is mentioned. Every word stays, nothing else changes, and since
        nothing is taken out, nothing can come together to a marker. Markers are also found in other case, with spaces
        in them, and in letters that look alike.
        """
        if self._pattern is None:
            return text
        while spans := list(self._found(text)):
            pieces, at = [], 0
            for start, end in spans:
                pieces += [text[at:start], '"', text[start:end], '"']
                at = end
            text = "".join([*pieces, text[at:]])
        return text

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the words of markers stand."""
        folded, places = _folded(text)
        if self._pattern is None:
            return
        for match in self._pattern.finditer(folded):
            words = re.search(r"\w(?:.*\w)?", match[0], re.DOTALL)
            body = words or re.search(r"\S(?:.*\S)?", match[0], re.DOTALL)
            if body is not None:
                start, end = match.start() + body.start(), match.start() + body.end() - 1
                yield (start, end + 1) if places is None else (places[start], places[end] + 1)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        anywhere = [_loose(one) for one in self.tags | self.controls if _breakable(one)]
        anywhere += [rf"(?<!\w){_unquoted(label)}" for label in self.inline]
        anywhere += [_unquoted(label) for label in self.joined]
        lines = [rf"^{_SIGNS}{_loose(label)}(?!(?<=\w)\w)" for label in self.labels]
        lines += [rf"^{_SIGNS}{_loose(words)}[ \t*_`~]*$" for words in self.bare]
        parts = sorted(anywhere, key=len, reverse=True) + sorted(lines, key=len, reverse=True)
        return re.compile("|".join(parts), re.MULTILINE) if parts else None

    @property
    def removed(self) -> frozenset[str]:
        """Tokens of signs alone, in which there is nothing to put into quotation marks."""
        return frozenset(one for one in self.controls if not re.search(r"\w", one))


def _breakable(marker: str) -> bool:
    """A word alone that a tokenizer made a token is everyone's word. Signs alone have no words."""
    return bool(re.search(r"\w", marker)) and not re.fullmatch(r"[\w\s]+", marker)


def _loose(marker: str) -> str:
    """A pattern for a marker as people might write it: in folded letters, with spaces or emphasis between the signs."""
    runs = re.findall(r"\w+|[^\w\s]+|\s+", _folded(marker.strip())[0])
    pattern = ""
    for before, run in zip(["", *runs], runs, strict=False):
        if run.isspace():
            pattern += r"[ \t]+"
        else:
            gap = r"[ \t*_`~]*" if before and not before.isspace() else ""
            pattern += gap + re.escape(run)
    return pattern


def _unquoted(label: str) -> str:
    """A pattern for a label within a line. One without words stays what it is in quotation marks, and is left there."""
    pattern = _loose(label)
    return pattern if re.search(r"\w", label) else rf'(?:(?<!"){pattern}|{pattern}(?!"))'


def _folded(text: str) -> tuple[str, list[int] | None]:
    """`text` with one form for all that looks alike, and where each of its characters stood. None: at its own place."""
    if text.isascii():
        return text.lower().translate(_BREAKS), None
    folded, places = [], []
    for place, char in enumerate(text):
        for one in _fold(char):
            folded.append(one)
            places.append(place)
    return "".join(folded), places


_BREAKS = str.maketrans("\r\v\f\x1c\x1d\x1e", "\n\n\n\n\n\n")


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    if char in "\u2028\u2029\x85" or char.translate(_BREAKS) == "\n":
        return "\n"
    if unicodedata.category(char) == "Cf":  # takes no room, and parts nothing for the eye
        return ""
    plain = unicodedata.normalize("NFKC", char).translate(_LOOKALIKES).lower().translate(_LOOKALIKES)
    return "".join(" " if one.isspace() and one != "\t" else one for one in plain)


def find_markers(tokenizer: PreTrainedTokenizerBase, template: str) -> TurnMarkers:
    """The markers of a chat template. None where it writes none of the conversations that are tried.

    Args:
        tokenizer: Whose added tokens are told from text.
        template: The template.
    """
    added = {str(token.content): index for index, token in tokenizer.added_tokens_decoder.items()}
    found = _Found(added)
    with suppress(EndlessTemplateError):  # which is said where the template is used; more tries take more time
        for roles in _PROBES:
            turns = [{"role": role, "content": word} for role, word in zip(roles, _SENTINELS, strict=False)]
            for opens in (True, False):
                if (text := _try(tokenizer, template, turns, opens)) is not None:
                    found.look(text, turns, opens=opens)
    return found.markers()


def _try(tokenizer: PreTrainedTokenizerBase, template: str, turns: list[dict[str, str]], opens: bool) -> str | None:
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    for form in (turns, parts):
        try:
            text = rendered(tokenizer, form, template=template, opens=opens)
        except EndlessTemplateError:
            raise
        except TemplateRefusedError:
            return None
        except TemplateFailedError:
            continue
        if turns[-1]["content"] in text:
            return text
    return None


class _Found:
    """What was seen so far between the turns of rendered conversations.

    Args:
        added: The ids of the tokenizer's added tokens.
    """

    def __init__(self, added: Mapping[str, int]) -> None:
        self._added = added
        self._tags: set[str] = set()
        self._controls: set[str] = set()
        self._labels: set[str] = set()
        self._inline: set[str] = set()
        self._joined: set[str] = set()
        self._bare: set[str] = set()
        self._words: set[str] = set()  # labels without a sign, in front of words on their line
        self._after: list[str] = []  # what follows on an answer

    def look(self, text: str, turns: Sequence[Mapping[str, str]], *, opens: bool) -> None:
        """Notes the markers of one conversation."""
        at, before = 0, ""
        for turn in turns:
            place = text.find(turn["content"], at)
            if place < 0:
                continue  # the template leaves this turn out
            self._boundary(text[at:place], before, turn["role"])
            at, before = place + len(turn["content"]), turn["role"]
        self._boundary(text[at:], before, "answer" if opens else "")

    def _boundary(self, text: str, before: str, after: str) -> None:
        """Notes what stands between two turns, at the beginning, or at the end."""
        if before == "assistant" and after in ("user", ""):
            self._after.append(text)
        tokens = self._tokens(text)
        self._controls.update(tokens)
        lines = [line for line in text.splitlines() if line.strip()]
        near = [*lines[:1], *lines[-2:]] if before or after else []
        cuts = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
        tags = {tag for line in near for tag in _TAG.findall(re.sub(cuts, "\n", line) if cuts else line)}
        self._tags |= tags
        cuts = "|".join(map(re.escape, sorted(tokens | tags, key=len, reverse=True)))
        fragments = re.split(cuts, text) if cuts else [text]
        if after:
            self._opening(fragments[-1], anchored=len(fragments) > 1, behind=bool(before))
        closing = text.partition("\n")
        if before and closing[1] and not cuts and len(closing[0].strip()) > 2 and _sign(closing[0]):
            self._tags.add(closing[0].strip())

    def _opening(self, fragment: str, *, anchored: bool, behind: bool) -> None:
        """A label in front of the next turn's words, `behind` those of another turn."""
        lines = fragment.splitlines() if anchored else fragment.rstrip().splitlines()
        label = lines[-1].strip() if lines and not (anchored and fragment.endswith("\n")) else ""
        if not (2 if anchored else _least(label)) < len(label) <= _LONGEST or '"' in label:
            return
        if _sign(label):
            self._labels.add(label)
            if not anchored and behind and len(lines) == 1:
                (self._inline if fragment[:1].isspace() else self._joined).add(label)
        elif not anchored and len(lines) > 1:
            (self._bare if fragment.endswith("\n") else self._words).add(label)

    def _tokens(self, text: str) -> set[str]:
        return {token for token in self._added if token.strip() and token in text}

    def markers(self) -> TurnMarkers:
        """All of them."""
        ends = [end for text in self._after for end in self._ends(text)]
        labels = self._labels | {f"{words}{gap}" for words in self._words for gap in " \t"}
        lines = {f"{gap}{label}" for label in labels for gap in ("\n", "\n\n")}
        within = {f" {label}" for label in self._inline} | {f"\n{words}\n" for words in self._bare} | self._joined
        return TurnMarkers(
            frozenset(self._controls),
            frozenset(tag for tag in self._tags if _breakable(tag)),
            frozenset(self._labels | self._words),
            frozenset(self._inline),
            frozenset(self._joined),
            frozenset(self._bare),
            tuple(dict.fromkeys(self._added[end] for end in ends if end in self._added)),
            tuple(sorted({end for end in ends if end not in self._added} | lines | within)),
        )

    def _ends(self, text: str) -> Iterator[str]:
        """The tokens and tags that follow on an answer at once: they end its turn, or begin another one.

        Not what comes after a role's name: such a token may part the pieces of one answer, too.
        """
        rest = text.lstrip()
        while end := max((one for one in (*self._added, *self._tags) if one and rest.startswith(one)), key=len,
                         default=None):  # fmt: skip
            yield end
            rest = rest[len(end) :].lstrip()


def _least(label: str) -> int:
    """Characters that a label has more than: `Q:` and `问：` are labels. Of signs alone, only pictures are."""
    return 0 if not label.isascii() else 1 if re.search(r"\w", label) else 2


def _sign(text: str) -> bool:
    return bool(re.search(r"[^\w\s'.,-]", text))
