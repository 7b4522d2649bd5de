from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Sequence

from torch import Tensor

from anchorlm.engine import Engine
from anchorlm.records import Messages

_AT_ONCE = 64


def as_turns(prompt: Messages | str) -> Messages:
    """A conversation; a text is one turn of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


async def prompt_activations(engine: Engine, prompts: Sequence[Messages | str]) -> AsyncIterator[Tensor]:
    """The residual stream (L, H) after every block at the last token of each prompt, in order, one pass a prompt.

    Args:
        engine: Runs the model.
        prompts: Conversations; a text counts as one turn of the user.
    """

    async def read(prompt: Messages | str) -> Tensor:
        async with engine.open(engine.model.encode(as_turns(prompt))) as row:
            return (await row.activations((-1,)))[:, 0].cpu()

    for first in range(0, len(prompts), _AT_ONCE):
        for activations in await gather(*(read(prompt) for prompt in prompts[first : first + _AT_ONCE])):
            yield activations
