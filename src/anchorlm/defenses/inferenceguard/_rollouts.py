from __future__ import annotations

import asyncio
from asyncio import gather
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anchorlm.files import Journal
from anchorlm.judging import Scorer, checked_scores
from anchorlm.records import GenerationSettings, Messages, UserError
from anchorlm.team import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from anchorlm.engine import Engine
    from anchorlm.search import SafetyState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response, and what it cost after each block.

    Attributes:
        prompt: Which prompt.
        number: Which of its responses.
        tokens: The response.
        ends: Lengths at which a block ended and the response went on.
        costs: Of the text so far at each of `ends`, and of the whole.
        reward: Of the whole.
    """

    prompt: int
    number: int
    tokens: list[int]
    ends: list[int]
    costs: list[float]
    reward: float

    def states(self, budget: float, gamma: float = 1.0) -> list[SafetyState]:
        """The budget left after each block, and at the end."""
        from anchorlm.search import SafetyState

        state, states, before = SafetyState(budget), [], 0
        for end, cost in zip([*self.ends, len(self.tokens)], self.costs, strict=True):
            state = state.after(end - before, cost, gamma)
            states.append(state)
            before = end
        return states


async def roll_out(
    target: Engine,
    cost: Scorer,
    reward: Scorer,
    prompts: Sequence[Messages],
    *,
    each: int,
    block: int,
    generation: GenerationSettings,
    journal: Path | None,
    digest: str,
    step: Progress,
) -> list[Rollout]:
    """Sampled responses to every prompt, with their costs and rewards. What a journal holds is not made again.

    Args:
        target: Writes.
        cost: Scores texts and their beginnings.
        reward: Scores whole texts.
        prompts: What is asked.
        each: Responses per prompt.
        block: Tokens of a block.
        generation: How tokens are sampled. Each response gets a seed of its own.
        journal: File in which finished responses are kept, so a killed run goes on.
        digest: Of everything that the responses depend on.
        step: Told what is done.

    Raises:
        UserError: The journal belongs to another fit.
        DefenseError: A scorer failed.
    """
    with ExitStack() as stack:
        book = None if journal is None else stack.enter_context(Journal(journal))
        known: dict[tuple[int, int], Rollout] = {}
        if book is not None and book.records:
            if book.records[0].get("digest") != digest:
                raise UserError(f"{str(journal)!r} holds rollouts of another fit: delete it, or choose another folder.")
            known = {(one["prompt"], one["number"]): Rollout(**one) for one in book.records[1:]}
        elif book is not None:
            book.write({"digest": digest})
        total, done = len(prompts) * each, len(known)
        step("Writing rollouts", done, total)

        async def one(prompt: int, number: int) -> Rollout:
            nonlocal done
            if (prompt, number) in known:
                return known[prompt, number]
            seed = generation.seed * 1_000_003 + prompt * each + number
            written = await _write(target, prompts[prompt], generation.model_copy(update={"seed": seed}))
            ends = list(range(block, len(written), block))
            texts = [_text(target, written[:end]) for end in (*ends, len(written))]
            costs, rewards = await gather(
                checked_scores(cost, prompts[prompt], texts), checked_scores(reward, prompts[prompt], texts[-1:])
            )
            rollout = Rollout(prompt, number, written, ends, costs, rewards[0])
            if book is not None:
                book.write(asdict(rollout))
            done += 1
            step("Writing rollouts", done, total)
            return rollout

        return await _all(one(prompt, number) for prompt in range(len(prompts)) for number in range(each))


async def hidden_states(
    target: Engine, prompts: Sequence[Messages], rollouts: Sequence[Rollout], step: Progress
) -> list[Tensor]:
    """The last block's residual stream at the last token of every block (ends, H), for each rollout."""
    done = 0

    async def one(rollout: Rollout) -> Tensor:
        nonlocal done
        ids = target.model.encode(prompts[rollout.prompt])
        async with target.open(ids, room=len(rollout.tokens)) as row:
            row.append(rollout.tokens)
            states = await row.activations([len(ids) + end - 1 for end in rollout.ends])
        done += 1
        step("Reading states", done, len(rollouts))
        return states[-1].float().cpu().clone()

    return await _all(one(rollout) for rollout in rollouts)


async def _write(target: Engine, prompt: Messages, generation: GenerationSettings) -> list[int]:
    async with target.open(target.model.encode(prompt), room=generation.max_new_tokens) as row:
        return list((await row.generate(generation)).token_ids)


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """`gather` whose unfinished parts do not go on once one has failed."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        return await gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _text(target: Engine, tokens: Sequence[int]) -> str:
    return target.model.vocabulary.decode(tokens).decode("utf-8", errors="replace")
