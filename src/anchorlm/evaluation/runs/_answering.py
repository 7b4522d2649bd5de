from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from anchorlm.evaluation.runs._cache import UndefendedCache
from anchorlm.evaluation.tasks._adaptive import Attempt
from anchorlm.evaluation.tasks._attacks import Attack, seeded
from anchorlm.evaluation.tasks._cases import Case
from anchorlm.evaluation.tasks._graders import Graded, Grader
from anchorlm.guard import Guard
from anchorlm.records import DefenseError, Messages, ModelError, Request, Response, Usage, UserError

Record = dict[str, Any]
"""An answer as it is written down."""


async def answered(
    guard: Guard,
    cache: UndefendedCache | None,
    attack: Attack,
    case: Case,
    graders: Sequence[Grader],
    seed: int,
    record: Record,
) -> Record:
    """One prompt under one attack, answered and graded."""
    outage = False

    async def ask(messages: Messages, number: int) -> Attempt:
        nonlocal outage
        try:
            request = guard.request(messages, seed=guard.generation.seed + seed + number)
            response = None if cache is None else cache.get(request)
            if response is None:
                response = await guard.respond(request)
                if cache is not None:
                    cache.put(request, response)
        except (UserError, DefenseError) as error:  # one try of a search may fail, and the others count
            outage |= isinstance(error, ModelError | DefenseError)  # else the prompt is too long, say: once and for all
            return Attempt(messages, Response("", (), "refusal", Usage(0, 0, 0), ()), "ungraded", error)
        if _is_fixed_refusal(guard, request, response):
            grades: dict[str, Graded] = dict.fromkeys((one.name for one in graders), "refused")
        else:
            grades = {one.name: await _graded(one, case, response.text) for one in graders}
        outcome = next(iter(grades.values()))
        # A search that was not told how its tries went was none.
        outage |= attack.search is not None and outcome == "ungraded"
        outage |= any(decision.kind == "fail_closed" for decision in response.trace)
        return Attempt(messages, response, outcome, grades)

    rng = seeded(seed, attack.name, record["data"], case.id)
    messages = attack.rewrite(case.messages, rng)
    attempt, queries = (await ask(messages, 0), 1) if attack.search is None else await attack.search(messages, ask, rng)
    response, failed = attempt.response, isinstance(attempt.extra, Exception)
    given = record | {
        "outage": outage,
        "prompt": [dict(turn) for turn in attempt.messages],
        "text": response.text,
        "finish": "error" if failed else response.finish_reason,
        "usage": asdict(response.usage),
        "trace": [{"kind": decision.kind, **decision.data} for decision in response.trace],
        "queries": queries,
        # What cannot be put has not succeeded.
        "grades": dict.fromkeys((one.name for one in graders), "broken") if failed else attempt.extra,
    }
    return given | {"error": str(attempt.extra)} if failed else given


async def graded_anew(record: Record, case: Case, graders: Sequence[Grader]) -> Record:
    """An answer with the grades that it lacks."""
    lacking = [one for one in graders if record["grades"].get(one.name) == "ungraded"]
    return record | {
        "grades": record["grades"] | {one.name: await _graded(one, case, record["text"]) for one in lacking}
    }


def is_spoiled(record: Record) -> bool:
    """Whether a model that was out had a part in an answer. What an error of an older run was, it does not say."""
    return bool(record.get("outage", "error" in record))


def is_ungraded(record: Record) -> bool:
    return "ungraded" in record["grades"].values()


def _is_fixed_refusal(guard: Guard, request: Request, response: Response) -> bool:
    """Whether the configured refusal was given: that is one in whatever words, also where no grader knows them."""
    return response.finish_reason == "refusal" and response.text == guard.defense.settings_for(request).refusal


async def _graded(grader: Grader, case: Case, text: str) -> Graded:
    """The outcome of an answer. A grader that cannot tell it says nothing about the guard."""
    try:
        return (await grader.grade(case, [text]))[0]
    except (UserError, DefenseError):
        return "ungraded"
