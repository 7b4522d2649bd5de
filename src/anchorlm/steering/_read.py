from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Sequence

from torch import Tensor

from anchorlm.engine import Engine
from anchorlm.records import DefenseError, Messages, UserError, as_messages

_AT_ONCE = 64


async def prompt_activations(engine: Engine, prompts: Sequence[Messages | str]) -> AsyncIterator[Tensor]:
    """The residual stream (L, H) after every block at the last token of each prompt, in order, one pass a prompt.

    Args:
        engine: Runs the model.
        prompts: Conversations; a text counts as one turn of the user.
    """

    async def read(prompt: Messages | str) -> Tensor:
        async with engine.open(engine.model.encode(as_messages(prompt))) as row:
            return (await row.activations((-1,)))[:, 0].cpu()

    for first in range(0, len(prompts), _AT_ONCE):
        for activations in await gather(*(read(prompt) for prompt in prompts[first : first + _AT_ONCE])):
            yield activations


async def check_activations(engine: Engine) -> None:
    """Reads one token, so that hooks which do not fire are found out before anybody asks.

    Raises:
        UserError: Blocks of the model are out of reach, as when it was compiled as a whole.
    """
    try:
        async with engine.open([0]) as row:
            await row.activations()
    except DefenseError as error:
        raise UserError(str(error)) from None
