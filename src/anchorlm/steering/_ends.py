from __future__ import annotations

from asyncio import gather, sleep
from collections.abc import AsyncIterator, Sequence

from torch import Tensor

from anchorlm.engine import Engine
from anchorlm.records import Messages, TooLongError, as_messages

_AT_ONCE = 64
"""Prompts that are read side by side."""

_WORTH, _SHORT = 8, 512
"""Tokens from which on a common beginning is worth sharing, and longest rest of a prompt that shares one."""


async def prompt_activations(engine: Engine, prompts: Sequence[Messages | str]) -> AsyncIterator[Tensor]:
    """The residual stream (L, H) after every block at the last token of each prompt, in order.

    What the prompts of a batch begin with alike, such as a template's system prompt, is read once.

    Args:
        engine: Runs the model.
        prompts: Conversations; a text counts as one turn of the user.
    """
    for first in range(0, len(prompts), _AT_ONCE):
        written = []
        for prompt in prompts[first : first + _AT_ONCE]:
            await sleep(0)
            written.append(engine.model.encode(as_messages(prompt)))
        for found in await _read(engine, written):
            yield found


async def _read(engine: Engine, written: Sequence[list[int]]) -> list[Tensor]:
    """One batch."""
    plain = [ids for ids in written if getattr(ids, "embeddings", None) is None]
    common = _common(plain)
    alike = [ids for ids in plain if len(ids) - common <= _SHORT]
    if common < _WORTH or len(alike) < 2:
        return list(await gather(*(_alone(engine, ids) for ids in written)))
    shared = set(map(id, alike))
    others = [ids for ids in written if id(ids) not in shared]
    known = dict(zip(map(id, others), await gather(*(_alone(engine, ids) for ids in others)), strict=True))
    known |= dict(zip(map(id, alike), await _behind(engine, alike, common), strict=True))
    return [known[id(ids)] for ids in written]


async def _behind(engine: Engine, written: Sequence[list[int]], common: int) -> list[Tensor]:
    """Prompts with a common beginning, in forks of one sequence; alone where the engine does not hold so many."""
    rest = max(map(len, written)) - common
    try:
        async with engine.open(written[0][:common], rows=len(written), room=rest) as row:
            await row.activations()
            rows = [row.fork() for _ in written[1:]] + [row]
            for one, ids in zip(rows, written, strict=True):
                one.append(ids[common:])
            ends = await gather(*(one.activations() for one in rows))
    except TooLongError:
        return list(await gather(*(_alone(engine, ids) for ids in written)))
    return [end[:, 0].cpu() for end in ends]


async def _alone(engine: Engine, ids: list[int]) -> Tensor:
    async with engine.open(ids) as row:
        return (await row.activations((len(ids) - 1,)))[:, 0].cpu()


def _common(written: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with, at most all but the last of the shortest."""
    if not written:
        return 0
    most = min(map(len, written)) - 1
    return next((place for place in range(most) if len({ids[place] for ids in written}) > 1), max(0, most))
