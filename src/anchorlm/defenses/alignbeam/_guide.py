from __future__ import annotations

import asyncio
from asyncio import gather
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch
from torch import Tensor

from anchorlm.engine import TokenSequence, unnamed
from anchorlm.models import CausalModel
from anchorlm.records import DefenseError, UserError
from anchorlm.tokens import Encoded, Kind, Projection, Retokenizer


class Spare:
    """Rows of an anchor that its guides borrow for a moment, all from one reservation."""

    def __init__(self, rows: int) -> None:
        self._rows = asyncio.Semaphore(rows)
        self._turn = asyncio.Lock()  # who takes several takes all of them before the next takes one

    @asynccontextmanager
    async def borrow(self, count: int) -> AsyncIterator[None]:
        """Waits until `count` rows are free, and gives them back at the end."""
        taken = 0
        try:
            async with self._turn:
                while taken < count:
                    await self._rows.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._rows.release()


LOOKAHEAD_ROWS = 8
"""Anchor tokens that the projection `lookahead` looks beyond at a step: rows that the guides of a prompt share."""


class Translator:
    """The way from one anchor's vocabulary to one target's, built once per pair.

    Attributes:
        lead: White space that the target opens a response with and the anchor does not.
        twins: Reads the target's own tokens to the anchor, where both write with the same but for a few.
        retokenizer: The response in the anchor's tokens.
        reader: The response in the target's canonical tokens.
    """

    def __init__(self, projection: Projection, anchor: CausalModel, target: CausalModel) -> None:
        self.projection = projection
        alike = anchor.response_lead == target.response_lead
        self.lead = b"" if alike else target.response_lead
        self.twins = projection.twins if alike else None
        self.retokenizer = Retokenizer(anchor.vocabulary, lead=b"" if alike else anchor.response_lead)
        self.reader = Retokenizer(target.vocabulary)

    @classmethod
    def between(cls, anchor: CausalModel, target: CausalModel, kind: Kind, top: int) -> Translator:
        """The way from one model to another.

        Args:
            anchor: Whose tokens are translated.
            target: Whose tokens they become.
            kind: How a token of the anchor becomes one of the target.
            top: How many of the anchor's tokens the paper's kinds look at.

        Raises:
            UserError: The vocabularies share nothing.
        """
        projection = Projection.build(
            anchor.vocabulary,
            target.vocabulary,
            kind,
            anchor_size=anchor.vocab_size,
            target_size=target.vocab_size,
            top=top,
        )
        return cls(projection, anchor, target)


class Guide:
    """What the anchor would say next, in the target's vocabulary, as the target's response grows.

    The anchor reads the response in its own canonical tokens. What it said after each of them is kept, so that a step
    reads only what is new: the prompt never again, and of the response the last word at most.

    Args:
        sequence: The anchor's, nothing but the prompt read.
        translator: The way to the target's vocabulary.
        spare: Further rows that the guides of this prompt share. By default as many as a step may borrow.

    Attributes:
        remark: What was unusual about the last distribution. None as a rule.
        unnamed: The most mass that a server left out of a distribution that the last one was made of.
    """

    def __init__(self, sequence: TokenSequence, translator: Translator, spare: Spare | None = None) -> None:
        self.remark: str | None = None
        self.unnamed = 0.0
        self._sequence = sequence
        self._translator = translator
        self._spare = spare or Spare(LOOKAHEAD_ROWS)
        self._encoded: Encoded | None = None
        self._read_by_target: Encoded | None = None
        self._after: dict[int, Tensor] = {}  # the anchor's distribution after so many response tokens
        self._left: dict[int, float] = {}  # and what a server left out of it

    def fork(self) -> Guide:
        """A guide for another response to the same prompt."""
        other = Guide(self._sequence.fork(), self._translator, self._spare)
        other._encoded = self._encoded
        other._read_by_target = self._read_by_target
        other._after = dict(self._after)
        other._left = dict(self._left)
        return other

    def close(self) -> None:
        """Gives the anchor's row back."""
        self._sequence.close()

    def at_boundary(self, response: bytes) -> bool:
        """Whether the anchor, too, could end a token where the response ends."""
        encoded = self._encode(response)
        return self._translator.retokenizer.is_boundary(response.removeprefix(self._translator.lead), encoded)

    async def distribution(self, response: bytes, tokens: Sequence[int]) -> Tensor:
        """q: the anchor's law of the target's next token, given the target's tokens so far (V,).

        Args:
            response: The response so far.
            tokens: The same in the target's tokens.
        """
        self.remark, self.unnamed = None, 0.0
        projection, lead = self._translator.projection, self._translator.lead
        paper = projection.kind.startswith("paper-")
        twins = self._translator.twins
        if twins is not None and not paper and twins.undisturbed(response):
            return projection((await self._read(twins.read(tokens)))[None])[0]
        if lead and not response and not paper:
            return projection.project_opening(await self._read([]), lead)
        encoded = self._encode(response)
        ids = [*encoded.ids, *encoded.tail]
        if paper:  # these know nothing of words that may go on, or of white space: they see the tokens as they stand
            return projection((await self._read(ids if response else []))[None])[0]
        self._forget(ids, len(encoded.ids))
        for count in range(len(encoded.ids), len(ids) + 1):
            await self._read(ids[:count], kept=True)
        return await self._given(encoded, self._written(response, tokens))

    async def _given(self, encoded: Encoded, written: tuple[int, ...]) -> Tensor:
        projection, ids = self._translator.projection, [*encoded.ids, *encoded.tail]
        steps = torch.stack([self._after[count] for count in range(len(encoded.ids), len(ids) + 1)])
        further = projection.lookahead_candidates(steps[-1:], width=LOOKAHEAD_ROWS, written=written)
        follows = await self._one_further(ids, further[:, 1].tolist()) if len(further) else None
        q = projection.project_pending(steps, encoded, further, follows, written=written)
        if written and bool(q.isnan().any()):
            self.remark = "the target spells its word as no tokenizer does: the anchor goes on from the bytes"
            q = projection.project_pending(steps, encoded, further, follows, written=())
        return q

    def _encode(self, response: bytes) -> Encoded:
        translator = self._translator
        self._encoded = translator.retokenizer.encode(response.removeprefix(translator.lead), self._encoded)
        return self._encoded

    def _written(self, response: bytes, tokens: Sequence[int]) -> tuple[int, ...]:
        """The target's tokens after its last boundary that no later text can move."""
        reader = self._translator.reader
        self._read_by_target = reader.encode(response, self._read_by_target)
        return reader.open_tokens(self._read_by_target, tokens)

    def _forget(self, ids: list[int], first: int) -> None:
        """Drops what was said after tokens that the response, as it is encoded now, does not have."""
        known = self._sequence.ids[self._sequence.prompt_length :]
        shared = next((n for n, (old, new) in enumerate(zip(known, ids, strict=False)) if old != new), len(known))
        shared = min(shared, len(ids))
        self._sequence.crop(self._sequence.prompt_length + shared)
        self._after = {count: probs for count, probs in self._after.items() if first <= count <= shared}

    def _settle(self, ids: list[int]) -> None:
        """Makes `ids` the response's tokens in the anchor's sequence. They are a prefix of it, or go on from it."""
        sequence = self._sequence
        sequence.crop(sequence.prompt_length + len(ids))
        _append(sequence, ids[len(sequence.ids) - sequence.prompt_length :])

    async def _read(self, ids: list[int], *, kept: bool = False) -> Tensor:
        """The anchor's distribution (V,) after the response's tokens `ids`.

        Args:
            ids: All of the response's tokens, or its first ones.
            kept: Whether `_forget` has been told all of them, so that nothing is stale.
        """
        if not kept:
            self._forget(ids, len(ids))
        if len(ids) not in self._after:
            self._settle(ids)
            try:
                self._after[len(ids)] = (await self._sequence.logits()).softmax(dim=-1)
            except UserError as error:  # an anchor that says nothing usable leaves the target without its defense
                raise DefenseError(f"The anchor failed: {error}") from error
            self._left[len(ids)] = unnamed(self._sequence)
        self.unnamed = max(self.unnamed, self._left[len(ids)])
        return self._after[len(ids)]

    async def _one_further(self, ids: list[int], tokens: list[int]) -> Tensor:
        """The anchor's distributions (N, V) after `ids` and each of `tokens`, read in one forward."""
        self._settle(ids)
        async with self._spare.borrow(len(tokens)):
            forks = [self._sequence.fork() for _ in tokens]
            try:
                for fork, token in zip(forks, tokens, strict=True):
                    _append(fork, [token])
                read = await gather(*(fork.logits() for fork in forks))
                return torch.stack([logits.softmax(dim=-1) for logits in read])
            finally:
                for fork in forks:
                    fork.close()


def _append(sequence: TokenSequence, ids: list[int]) -> None:
    try:
        sequence.append(ids)
    except RuntimeError:
        raise DefenseError(
            "The response outgrew the anchor's room: choose an anchor with a longer context, or one that knows the "
            "target's language, or mix fewer tokens."
        ) from None
