"""Prompts to a judging model, read side by side."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from anchorlm.engine import Engine, TokenSequence, read_ahead
from anchorlm.models import CausalModel
from anchorlm.records import DefenseError, UnreadableError

T = TypeVar("T")


async def side_by_side(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    room: int,
    work: Callable[[TokenSequence, list[int]], Awaitable[T]],
) -> list[T]:
    """What `work` makes of each prompt, in order. What all of them start with is read once.

    Args:
        engine: Runs the judging model.
        prompts: Token ids, at least one row.
        room: Tokens that are added to each at most.
        work: Gets a sequence that holds a prompt, and the prompt.
    """
    shared = common_start(prompts)
    if not shared:
        return list(await gather(*(_alone(engine, list(prompt), room, work) for prompt in prompts)))
    longest = max(map(len, prompts)) + room
    async with engine.open(shared, rows=len(prompts), room=longest - len(shared)) as root:
        if len(prompts) > 1:
            await read_ahead(engine, root)
        rows = [root, *(root.fork() for _ in prompts[1:])]
        return list(await gather(*(_on(row, prompt, work) for row, prompt in zip(rows, prompts, strict=True))))


async def _on(row: TokenSequence, prompt: Sequence[int], work: Callable[[TokenSequence, list[int]], Awaitable[T]]) -> T:
    row.append(prompt[len(row.ids) :])
    return await work(row, list(prompt))


async def _alone(
    engine: Engine, prompt: list[int], room: int, work: Callable[[TokenSequence, list[int]], Awaitable[T]]
) -> T:
    async with engine.open(prompt, room=room) as row:
        return await work(row, prompt)


def read_on(row: TokenSequence, prompt: Sequence[int]) -> None:
    """Puts a prompt into a sequence that holds another one. What both start with is not read again."""
    keep = len(common_start([row.ids, prompt]))
    row.crop(keep)
    row.append(prompt[keep:])


def check_length(model: CausalModel, longest: int, least: Callable[[], int]) -> None:
    """Whether all that is to be judged fits into the judge's context.

    Args:
        model: The judge.
        longest: Tokens that the longest prompt needs, with the judge's answer.
        least: Gives the tokens that the conversation needs with an empty response.

    Raises:
        UnreadableError: The conversation leaves no room.
        DefenseError: A response does not fit.
    """
    if longest <= model.context_length:
        return
    if (needed := least()) >= model.context_length:
        raise UnreadableError(
            f"The prompt needs {needed} tokens of the judge {model.name}, which reads {model.context_length} "
            "with an answer: shorten it, or take a judge with a longer context."
        )
    raise DefenseError(
        f"The judge {model.name} reads {model.context_length} tokens, but this conversation and its answers "
        f"need {longest}: take a judge with a longer context, or lower max_new_tokens."
    )


def common_start(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts start with, at most all but one, so that each has something of its own to read."""
    shortest = min(map(len, prompts)) - 1
    first = prompts[0]
    differs = (at for at in range(shortest) if any(prompt[at] != first[at] for prompt in prompts))
    return list(first[: next(differs, shortest)])
