from __future__ import annotations

from asyncio import gather, sleep
from collections.abc import AsyncIterator, Sequence

from torch import Tensor

from anchorlm.engine import Engine
from anchorlm.models import CausalModel
from anchorlm.records import Messages, TooLongError, as_messages
from anchorlm.steering._choices import Pooling

_AT_ONCE = 64
"""Prompts that are read side by side."""

_WORTH, _SHORT = 8, 512
"""Tokens from which on a common beginning is worth sharing, and longest rest of a prompt that shares one."""


async def prompt_activations(
    engine: Engine, prompts: Sequence[Messages | str], pooling: Pooling = "end"
) -> AsyncIterator[Tensor]:
    """The residual stream (L, H) after every block at the last token of each prompt, in order.

    What the prompts of a batch begin with alike, such as a template's system prompt, is read once.

    Args:
        engine: Runs the model.
        prompts: Conversations. A text counts as one turn of the user.
        pooling: `both`: behind it the mean over the prompt's own tokens, (L, 2 H).
    """
    start = own_start(engine.model) if pooling == "both" else None
    for first in range(0, len(prompts), _AT_ONCE):
        written = []
        for prompt in prompts[first : first + _AT_ONCE]:
            await sleep(0)
            written.append(engine.model.encode(as_messages(prompt)))
        for found in await _read(engine, written, start):
            yield found


async def _read(engine: Engine, written: Sequence[list[int]], start: int | None) -> list[Tensor]:
    """One batch."""
    plain = [ids for ids in written if getattr(ids, "embeddings", None) is None]
    common = _common(plain)
    if start is not None:
        common = min(common, start)
    alike = [ids for ids in plain if len(ids) - common <= _SHORT]
    if common < _WORTH or len(alike) < 2:
        return list(await gather(*(_alone(engine, ids, start) for ids in written)))
    shared = set(map(id, alike))
    others = [ids for ids in written if id(ids) not in shared]
    known = dict(zip(map(id, others), await gather(*(_alone(engine, ids, start) for ids in others)), strict=True))
    known |= dict(zip(map(id, alike), await _behind(engine, alike, common, start), strict=True))
    return [known[id(ids)] for ids in written]


async def _behind(engine: Engine, written: Sequence[list[int]], common: int, start: int | None) -> list[Tensor]:
    """Prompts with a common beginning, in forks of one sequence. Alone where the engine does not hold so many."""
    rest = max(map(len, written)) - common
    try:
        async with engine.open(written[0][:common], rows=len(written), room=rest) as row:
            await row.activations()
            rows = [row.fork() for _ in written[1:]] + [row]
            for one, ids in zip(rows, written, strict=True):
                one.append(ids[common:])
            begins = [mean_from(start, len(ids) - 1) for ids in written]
            ends = await gather(*(one.activations(mean_from=begin) for one, begin in zip(rows, begins, strict=True)))
    except TooLongError:
        return list(await gather(*(_alone(engine, ids, start) for ids in written)))
    return [end[:, 0].cpu() for end in ends]


async def _alone(engine: Engine, ids: list[int], start: int | None = None) -> Tensor:
    """The residual stream (L, H) at the last token of a prompt. With the mean from `start` on, (L, 2 H)."""
    async with engine.open(ids) as row:
        return (await row.activations((len(ids) - 1,), mean_from(start, len(ids) - 1)))[:, 0].cpu()


def mean_from(start: int | None, *ends: int) -> int | None:
    """Where means begin that reach to these ends."""
    return None if start is None else min(start, *ends)


def own_start(model: CausalModel) -> int:
    """Where a prompt's own tokens begin: what stands before them is the template's, and the same in every prompt."""
    return _common([model.encode([{"role": "user", "content": word}]) for word in ("x", "y")])


def _common(written: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with, at most all but the last of the shortest."""
    if not written:
        return 0
    most = min(map(len, written)) - 1
    return next((place for place in range(most) if len({ids[place] for ids in written}) > 1), max(0, most))
