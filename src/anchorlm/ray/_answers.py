from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from anchorlm.guard import Guard, Recipe
from anchorlm.ray._pool import Work, shared
from anchorlm.ray._start import started
from anchorlm.records import DefenseError, Messages, Response, UserError, as_messages

Ask = tuple[Messages | str, Mapping[str, Any]]
"""A prompt, and what it offers besides: tools."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a prompt.

    Attributes:
        outcome: The response, or why there is none.
        pipeline: Digest of the weights and settings that answered, where the defense knows one.
    """

    outcome: Response | UserError | DefenseError
    pipeline: str | None


def answers(
    recipe: Recipe, asks: Sequence[Ask], *, probe: bool, workers: int | None = None, concurrency: int = 64
) -> Iterator[tuple[int, Answer]]:
    """Answers prompts on a Ray cluster, each as it is done, with its place among them.

    Args:
        recipe: The guard. Every worker loads one of its own.
        asks: The prompts.
        probe: Whether each guard is tried before it answers.
        workers: How many there are. None: one for each GPU, or one for each machine where there is none.
        concurrency: How many prompts a worker has under way.

    Raises:
        UserError: A guard cannot be loaded, or fails its probe; or no such cluster.
        ModelError: Workers are killed again and again.
    """
    with started(workers) as crew:
        yield from shared(asks, partial(_begin, recipe, probe), crew, at_once=concurrency)


def _begin(recipe: Recipe, probe: bool) -> Work[Ask, Answer]:
    """A guard in a worker. One that fails its probe answers nothing."""
    guard = Guard.from_recipe(recipe)
    if probe and (failures := guard.probe(raw=False).failures):
        raise UserError(f"The guard {failures[-1].said.rstrip('.')}; or go on all the same with --no-probe.")
    return partial(_answer, guard)


def _answer(guard: Guard, ask: Ask) -> Answer:
    prompt, offer = ask
    pipeline = getattr(guard.defense, "pipeline", None)
    try:
        return Answer(guard.chat(as_messages(prompt), **offer), pipeline)
    except (UserError, DefenseError) as error:
        return Answer(error, pipeline)
