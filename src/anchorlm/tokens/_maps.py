"""The tables behind the projections: which target id stands for which anchor id. Computed once per pair."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from anchorlm.tokens._vocabulary import ByteVocabulary

NOWHERE = -1
_TWINS = 0.95
"""Share of the tokens of text that two vocabularies must have in common to be one but for a few tokens: two families of
one kind share three quarters (Llama 2 and Mistral, GPT-2 and GPT-NeoX)."""


class Fate(IntEnum):
    """What becomes of an anchor token."""

    DROPPED = 0
    ONE_TO_ONE = 1
    SPLIT = 2


@dataclass(frozen=True, slots=True)
class Tables:
    """What a projection needs to know about a pair of vocabularies.

    Attributes:
        index: (A,) int32, the target id for each anchor id. `NOWHERE` where it gets no mass.
        fate: (A,) uint8, a `Fate` for each anchor id (of the tokens that become several, `paper-drop` and
            `paper-exact` give none any mass).
        open: (A,) bool, anchor tokens with which a longer target token may begin. Empty unless looking ahead.
        shared: (A,) bool, the tokens of both, where the vocabularies are one but for a few tokens. Else empty.
    """

    index: torch.Tensor
    fate: torch.Tensor
    open: torch.Tensor
    shared: torch.Tensor


def first_token_tables(anchor: ByteVocabulary, target: ByteVocabulary, *, look_ahead: bool) -> Tables:
    """M[s] = the first target id of what `s` adds to a response."""
    shared = _shared(anchor, target)
    index = [NOWHERE] * anchor.size
    fates = [Fate.DROPPED] * anchor.size
    for i, j in shared.items():
        index[i], fates[i] = j, Fate.ONE_TO_ONE
    written = [i for i, data in enumerate(anchor.bytes) if data and i not in shared]
    for i, ids in zip(written, target.encode_batch([anchor.bytes[i] for i in written]), strict=True):
        if ids and ids[0] not in target.special:
            index[i] = ids[0]
            fates[i] = Fate.ONE_TO_ONE if len(ids) == 1 else Fate.SPLIT
    for i, j in role_map(anchor, target).items():
        if shared.get(i) not in target.stop:
            index[i], fates[i] = j, Fate.ONE_TO_ONE
    mask = torch.zeros(anchor.size if shared else 0, dtype=torch.bool)
    mask[list(shared)] = True
    # A token that only the target has is an added one: to look for it would change what both have.
    is_open = _open_tokens(anchor, target) if look_ahead and not shared else torch.zeros(0, dtype=torch.bool)
    return _tables(index, fates, is_open, mask)


def paper_tables(anchor: ByteVocabulary, target: ByteVocabulary, kind: str) -> Tables:
    """The paper's three, literally: decode one anchor token to a string, encode the string with the target's tokenizer.

    Ends of text and turn go by role here too (without that no paper variant could end a response), and other special
    tokens get nothing.
    """
    texts = anchor.literal()
    encoded = target.encode_literal(texts)
    index = [NOWHERE] * anchor.size
    fates = [Fate.DROPPED] * anchor.size
    single = target.literal() if kind == "paper-exact" else []
    for i, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
        if i in anchor.special or not ids or ids[0] in target.special:
            continue
        if len(ids) > 1:
            fates[i] = Fate.SPLIT
            if kind == "paper-first":
                index[i] = ids[0]
        elif kind != "paper-exact" or single[ids[0]] == text:
            index[i], fates[i] = ids[0], Fate.ONE_TO_ONE
    for i, j in role_map(anchor, target).items():
        index[i], fates[i] = j, Fate.ONE_TO_ONE
    return _tables(index, fates)


def _shared(anchor: ByteVocabulary, target: ByteVocabulary) -> dict[int, int]:
    """Anchor id to target id of the tokens of both, where the vocabularies are one but for a few tokens. Else empty.

    A base model and its chat model differ in roles and added tokens only: there a token is itself, also where the
    tokenizer would write its bytes in several.
    """
    if anchor.digest == target.digest:
        return {i: i for i in range(anchor.size)}
    if anchor.scheme != target.scheme:
        return {}
    ours, theirs = anchor.strings, target.strings
    same = {i: theirs[token] for token, i in ours.items() if token in theirs}
    same = {i: j for i, j in same.items() if (i in anchor.special) == (j in target.special)}
    text = sum(1 for i in same if anchor.bytes[i])
    known = (sum(1 for data in vocabulary.bytes if data) for vocabulary in (anchor, target))
    return same if text >= _TWINS * max(known) else {}


def role_map(anchor: ByteVocabulary, target: ByteVocabulary) -> dict[int, int]:
    """Ends of text and of turn, anchor id to target id.

    An anchor that does not tell the two apart ends a turn as it ends a text, so its only end is the target's own way
    to end a response.
    """
    if target.stop_id is None:
        return {}
    turn = _preferred(target.end_of_turn, target.stop_id)
    text = _preferred(target.eos, target.stop_id) if anchor.end_of_turn else target.stop_id
    return dict.fromkeys(anchor.eos, text) | dict.fromkeys(anchor.end_of_turn, turn)


def _tables(
    index: list[int], fates: list[Fate], is_open: torch.Tensor | None = None, shared: torch.Tensor | None = None
) -> Tables:
    none = torch.zeros(0, dtype=torch.bool)
    return Tables(
        torch.tensor(index, dtype=torch.int32),
        torch.tensor(fates, dtype=torch.uint8),
        none if is_open is None else is_open,
        none if shared is None else shared,
    )


def _preferred(ids: frozenset[int], stop_id: int) -> int:
    return stop_id if stop_id in ids or not ids else min(ids)


def _open_tokens(anchor: ByteVocabulary, target: ByteVocabulary) -> torch.Tensor:
    """Anchor tokens after which the first target token may be longer than the map says.

    These are the first pieces of the target tokens that the anchor writes in several, and runs of white space, which
    many tokenizers divide by what follows.
    """
    is_open = torch.zeros(anchor.size, dtype=torch.bool)
    written = [data for data in target.bytes if data]
    pieces = (ids for ids in anchor.encode_batch(written) if len(ids) > 1)
    spaces = (i for i, data in enumerate(anchor.bytes) if len(data) > 1 and data.isspace())
    chosen = {*(ids[0] for ids in pieces), *spaces} - anchor.special
    is_open[list(chosen)] = True
    return is_open
