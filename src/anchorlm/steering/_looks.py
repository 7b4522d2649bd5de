from __future__ import annotations

from asyncio import gather, sleep
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from anchorlm.engine import Engine, TokenSequence
from anchorlm.models import CausalModel
from anchorlm.records import Access, DefenseError, Message, Messages, UserError, prompt_key, turn_text
from anchorlm.steering._choices import Pooling
from anchorlm.steering._ends import mean_from, own_start
from anchorlm.steering._pieces import pieces, raw_pieces

Heard = Callable[[int, Tensor], None]
"""Is told what a model would say first after a look: the look's index, and the logits (V,)."""

_AT_ONCE = 64
"""Prompts that are read side by side."""


@dataclass(frozen=True, slots=True)
class Look:
    """Something that a gate reads at its last token.

    Attributes:
        prompt: A conversation, read where the answer would begin.
        what: What it is of the request, for the trace.
        turns: If it is a beginning of the conversation: of how many turns.
    """

    prompt: Messages
    what: str
    turns: int = 0

    @property
    def key(self) -> str:
        """Equal for looks at the same."""
        return prompt_key(self.prompt)


def looks(request: Messages | str) -> list[Look]:
    """Everything that a gate reads of a request. The worst of it decides. The first is the whole request.

    Of a conversation: the whole, its beginning up to the end of every user's turn, and every turn by itself as if a
    user had just said it. By itself, because what came before hides harm from a gate. A system's or an assistant's turn
    too, because the client wrote those as well. And what the words of a turn hide from each other: a turn of more than
    one sentence is read in pieces, too, but an assistant's, whose single sentences no one asks. Of a raw text: the same
    text as a user's turn, and its pieces as turns, because it may hold turns of its own, a request in its middle, or an
    answer that it has begun.

    The end of a raw text itself is not read. A gate is fitted where a template ends a turn: elsewhere it opened on a
    fifth of harmless texts, and one that was fitted on raw texts found less than half of the harmful ones.
    """
    if isinstance(request, str):
        return _distinct([Look(_said(request), "the text as a turn"), *_parts(raw_pieces(request), "")])
    last = len(request)
    ends = [end for end, turn in enumerate(request[:-1], 1) if turn["role"] == "user"]
    found = [Look(request, "the conversation", last)]
    found += [Look(request[:end], f"the conversation to turn {end}", end) for end in ends]
    for number, (turn, parts) in enumerate(zip(request, pieces(list(map(_words, request))), strict=True), 1):
        if turn_text(turn).strip():
            found += [Look(_said(turn["content"]), f"turn {number} by itself"), *_parts(parts, f" of turn {number}")]
    return _distinct(found)


def _parts(parts: Sequence[str], of: str) -> list[Look]:
    return [Look(_said(part), f"piece {number}{of}") for number, part in enumerate(parts, 1)]


def _words(turn: Message) -> str:
    """What a turn asks, without its images."""
    if turn["role"] == "assistant":
        return ""
    content = turn["content"]
    return (
        content if isinstance(content, str) else "\n".join(part["text"] for part in content if part["type"] == "text")
    )


def _said(content: Any) -> Messages:
    return [{"role": "user", "content": content}]


def _distinct(found: Sequence[Look]) -> list[Look]:
    seen: dict[object, Look] = {}
    for look in found:
        # Beginnings differ by their length; that of one turn may be a turn by itself.
        seen.setdefault(look.turns if look.turns > 1 else look.key, look)
    return list(seen.values())


def as_texts(shown: Sequence[Look]) -> list[Look]:
    """The same looks for a model that reads no images."""
    whole = list(map(_texts, shown[0].prompt))
    return [
        replace(look, prompt=whole[: look.turns] if look.turns else list(map(_texts, look.prompt))) for look in shown
    ]


def _texts(turn: Message) -> Message:
    return turn if isinstance(turn["content"], str) else {**turn, "content": turn_text(turn)}


def says_nothing(model: CausalModel, look: Look) -> bool:
    """Whether a model reads no word where a look ends, as where a line is nothing but a control token."""
    content = look.prompt[-1]["content"]
    return isinstance(content, str) and not model.without_control_tokens(content).strip()


async def look_activations(
    engine: Engine,
    shown: Sequence[Look],
    row: TokenSequence | None = None,
    pooling: Pooling = "end",
    heard: Heard | None = None,
) -> list[Tensor]:
    """The residual stream (L, H) after every block at the end of each look, in order.

    Ends of turns that lie in the conversation as it is written are read there, in one sequence. Whatever else there is
    has sequences of its own, next to it in the same forward. For what says nothing by itself the whole request stands.

    Args:
        engine: Runs the model.
        shown: What to read. First the whole request.
        row: A sequence that holds the whole request already, perhaps. If it does, it is read.
        pooling: `both`: behind them the mean over each look's own tokens, (L, 2 H).
        heard: Is told the logits after each look at the end of a sequence: they come with the same forward.

    Raises:
        DefenseError: A part of the request cannot be read by itself: a gate that saw the rest only would not know.
        UserError: The request cannot be read at all.
    """
    whole = engine.model.encode(shown[0].prompt)
    within = {0: len(whole) - 1, **_turn_ends(engine.model, shown, whole)}
    others: dict[int, list[int]] = {}
    for index, look in enumerate(shown):
        if index in within:
            continue
        await sleep(0)  # a conversation of many turns must not hold everyone else up
        if says_nothing(engine.model, look):
            within[index] = len(whole) - 1
            continue
        try:
            ids = engine.model.encode(look.prompt)
        except UserError as error:
            raise DefenseError(f"The gate cannot read {look.what}: {error}") from error
        if look.turns and ids == whole[: len(ids)]:
            within[index] = len(ids) - 1
        else:
            others[index] = ids

    start = own_start(engine.model) if pooling == "both" else None

    async def ends(row: TokenSequence, index: int, places: Sequence[int]) -> Tensor:
        found = await row.activations(places, mean_from(start, *places))
        if heard is not None:
            heard(index, await row.logits())
        return found

    async def own(index: int, ids: list[int]) -> Tensor:
        async with engine.open(ids) as other:
            return (await ends(other, index, (len(ids) - 1,)))[:, 0].cpu()

    async with AsyncExitStack() as stack:
        if row is None or row.ids != whole:
            row = await stack.enter_async_context(engine.open(whole))
        places = sorted(set(within.values()))
        batch = list(others.items())
        inside, *found = await gather(ends(row, 0, places), *(own(*each) for each in batch[:_AT_ONCE]))
    for first in range(_AT_ONCE, len(batch), _AT_ONCE):
        found += await gather(*(own(*each) for each in batch[first : first + _AT_ONCE]))
    inside = inside.cpu()
    read = {index: inside[:, places.index(place)] for index, place in within.items()}
    read |= dict(zip(others, found, strict=True))
    return [read[index] for index in range(len(shown))]


def _turn_ends(model: CausalModel, shown: Sequence[Look], whole: Sequence[int]) -> Mapping[int, int]:
    """Where the beginnings of a conversation end in its tokens, by the index of their look: empty where that cannot be
    told without writing each of them.

    What a template writes between a user's words and the answer is what two conversations of one short turn end in
    alike. It stands once after every user's turn, or the template does something else in a history.
    """
    request = shown[0].prompt
    begun = [index for index, look in enumerate(shown) if 0 < look.turns < shown[0].turns]
    if not begun:
        return {}
    one, other = (model.encode([{"role": "user", "content": word}]) for word in ("x", "y"))
    size = next((n for n, (a, b) in enumerate(zip(reversed(one), reversed(other), strict=False)) if a != b), 0)
    tail = one[len(one) - size :]
    ends = [end for end in range(size, len(whole) + 1) if size and list(whole[end - size : end]) == tail]
    users = [number for number, turn in enumerate(request, 1) if turn["role"] == "user"]
    if users[-1:] != [len(request)] or len(ends) != len(users):
        return {}
    by_turn = dict(zip(users, ends, strict=True))
    return {index: by_turn[shown[index].turns] - 1 for index in begun}


async def check_activations(engine: Engine) -> None:
    """Reads one token, so hooks which do not fire are found out before anyone asks.

    Raises:
        UserError: Blocks of the model are out of reach, as when it was compiled as a whole.
    """
    try:
        async with engine.open([0]) as row:
            await row.activations()
    except DefenseError as error:
        raise UserError(str(error)) from None


def with_activations(engine: Engine, role: str, reader: str = "InferAligner") -> Engine:
    """The engine, if it lets activations be read.

    Args:
        engine: Runs the model.
        role: Of the model.
        reader: What reads them.

    Raises:
        UserError: It does not.
    """
    if Access.ACTIVATIONS not in engine.access:
        remedy = getattr(engine, "unread", "") or f"load the {role} with transformers"
        raise UserError(
            f"{reader} reads the {role}'s activations, but its engine offers {engine.access.words}: {remedy}."
        )
    return engine
