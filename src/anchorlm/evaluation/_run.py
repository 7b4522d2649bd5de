from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from anchorlm.engine import LocalEngine, as_done, runtime
from anchorlm.evaluation._adaptive import Attempt, Graded
from anchorlm.evaluation._attacks import Attack, parse_attack, seeded
from anchorlm.evaluation._cache import UndefendedCache
from anchorlm.evaluation._cases import Case
from anchorlm.evaluation._contestants import Contestant, Embedded, Pool
from anchorlm.evaluation._folder import ANSWERS, TIMINGS, Setting, artifacts, check, key, prepare, read_answers
from anchorlm.evaluation._graders import Grader
from anchorlm.evaluation._recipe import CompareRecipe
from anchorlm.evaluation._workers import Pair, records
from anchorlm.guard import Guard, JudgeSettings, ScorerSettings
from anchorlm.records import (
    Artifact,
    DefenseError,
    Journal,
    Messages,
    ModelError,
    Response,
    TextDelta,
    Usage,
    UserError,
)

if sys.platform == "win32":
    resource = None
else:
    import resource

Progress = Callable[[int, int, str], None]
"""Told how many answers of how many are there, and what is being answered."""

Record = dict[str, Any]


def compare(
    recipe: CompareRecipe,
    folder: str | Path,
    *,
    embedded: Embedded | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Runs a comparison; what the folder holds already is not run again, but for what an outage spoiled.

    Every answer is written with its grades the moment it is there, so that a run that was killed goes on where it was.

    Args:
        recipe: What is compared.
        folder: Gets the run.
        embedded: Knows the embedded models, if the recipe names any.
        workers: Processes that answer, each with models of its own; single answers are timed by one alone, at the end.
        progress: Told how far the run is.

    Returns:
        The folder.

    Raises:
        UserError: A mistake in the recipe, in its files, or in the folder.
    """
    if workers < 1:
        raise UserError(f"workers = {workers} answer nothing: give at least 1.")
    pool = Pool(recipe, Path(folder), embedded)
    setting = Setting.of(recipe, pool)
    check(folder, setting, pool)
    if len(read_answers(folder)) < setting.expected:
        _check_contestants(setting, pool)
    place = prepare(folder, setting, pool)
    with Journal(place / ANSWERS) as answers, Journal(place / TIMINGS) as timings:
        run = _Run(setting, pool, answers, timings, progress or (lambda done, total, what: None))
        if workers > 1:
            for record in records(setting, place, embedded, run.open_pairs, workers, answer_pair):
                run.take(record)
        run.everything()
    return place


def answer_pair(setting: Setting, pool: Pool, hand_over: Callable[[Record], None], pair: Pair) -> None:
    """What a worker does: everything that is missing of one defense on one target, but for times of single answers."""
    target, place = pair
    done = [record for record in read_answers(pool.folder) if record["target"] == target]
    run = _Run(setting, pool, _Sent(done, hand_over), _Sent([], hand_over))
    run.answer_missing(target, setting.contestants[place])


def _check_contestants(setting: Setting, pool: Pool) -> None:
    """Says before the first answer what would else end the run at a defense's turn, hours later maybe.

    Raises:
        UserError: Nobody may grade a defense, or an artifact is missing or damaged.
    """
    for contestant in setting.contestants:
        for data in setting.recipe.data:
            _may_grade(setting.recipe, pool, contestant, data)
    for folder in dict.fromkeys(artifacts(setting, pool).values()):
        Artifact.load(folder)


def _may_grade(recipe: CompareRecipe, pool: Pool, contestant: Contestant, data: str) -> list[str]:
    """Names of the graders that are not a judge or scorer of the defense; the truth only where it is known.

    Raises:
        UserError: There is none.
    """
    roles = (contestant.judge, contestant.cost, contestant.reward)
    own = {_source(pool, role) for role in roles if role is not None}
    judges = {name: one.judge for name, one in recipe.grader.items()} | {"refusal": JudgeSettings(kind="refusal")}
    known = recipe.data[data].embedded is not None
    fit = [
        name
        for name in recipe.graders
        if (known if name == "truth" else name not in judges or _source(pool, judges[name]) not in own)
    ]
    if not fit:
        raise UserError(
            f"Nobody may grade {contestant.label} on {data}: its own judges may not, and the truth is known for "
            "embedded prompts only; add a grader such as refusal to the recipe."
        )
    return fit


def _source(pool: Pool, settings: JudgeSettings | ScorerSettings) -> str:
    """What a judge or scorer is known by before its weights are loaded; a judge behind a cost is a judge."""
    if isinstance(settings, ScorerSettings) and settings.judge is not None:
        return _source(pool, settings.judge)
    return f"{settings.kind}:{'' if settings.model is None else pool.located(settings.model).path}"


class _Sent:
    """A journal that another process writes."""

    def __init__(self, records: Sequence[Record], hand_over: Callable[[Record], None]) -> None:
        self.records = records
        self.write = hand_over


class _Run:
    """One run: target by target, defense by defense, everything that is still missing."""

    def __init__(
        self,
        setting: Setting,
        pool: Pool,
        answers: Journal | _Sent,
        timings: Journal | _Sent,
        progress: Progress = lambda done, total, what: None,
    ) -> None:
        self.setting, self.pool, self.recipe = setting, pool, setting.recipe
        self._answers, self._timings, self._progress = answers, timings, progress
        self._old = {key(record): record for record in answers.records}
        self._done = {at for at, record in self._old.items() if not (_is_spoiled(record) or _is_ungraded(record))}
        self._errors = {at for at, record in self._old.items() if "error" in record}
        self._timed = {(one["target"], one["defense"], one["data"], one["case"]) for one in timings.records
                       if "case" in one}  # fmt: skip
        self._attacks = {spec: parse_attack(spec) for spec in ("none", *self.recipe.attacks)}
        self._graders: list[Grader] | None = None

    @property
    def graders(self) -> list[Grader]:
        """The graders, with their models once something is to be graded."""
        if self._graders is None:
            self._graders = self.pool.graders()
        return self._graders

    def everything(self) -> None:
        """Runs what is missing."""
        total = self.setting.expected
        for target in self.recipe.targets:
            for contestant in self.setting.contestants:
                self._progress(len(self._done), total, f"{target} {contestant.label}")
                self.answer_missing(target, contestant)
                if untimed := self._untimed(target, contestant):
                    self._time(self.pool.guard(target, contestant), target, contestant.label, untimed)
            self.pool.release(target)
        self._progress(len(self._done), total, "done")

    @property
    def open_pairs(self) -> list[Pair]:
        """Targets and defenses of which an answer is missing."""
        return [
            (target, place)
            for target in self.recipe.targets
            for place, contestant in enumerate(self.setting.contestants)
            if self._missing(target, contestant)
        ]

    def take(self, record: Record) -> None:
        """Writes an answer down, or a worker's time; the last line of an answer counts."""
        if "together" in record:
            self._timings.write(record)
            return
        at = key(record)
        self._done.add(at)  # whatever came of it, it is not tried again in this run
        again = at in self._old and (_is_spoiled(record) or record == self._old[at])
        if isinstance(self._answers, _Sent) or not again:  # what fails again does not take the place of what was there
            self._answers.write(record)
            (self._errors.add if "error" in record else self._errors.discard)(at)
        self._progress(len(self._done), self.setting.expected, f"{record['target']} {record['defense']}")

    def answer_missing(self, target: str, contestant: Contestant) -> None:
        """Every answer of one defense on one target that is not there yet."""
        jobs = self._missing(target, contestant)
        for without in dict.fromkeys(self._attacks[attack].ablation for _, attack, _ in jobs):
            guard = self.pool.guard(target, contestant, without)
            some = [job for job in jobs if self._attacks[job[1]].ablation == without]
            self._answer(guard, target, contestant, some)

    def _missing(self, target: str, contestant: Contestant) -> list[tuple[str, str, Case]]:
        return [
            (name, attack, case)
            for name, cases in self.setting.cases[target].items()
            for case in cases
            for attack in self.setting.attacks(case)
            if (target, contestant.label, name, attack, case.id) not in self._done
        ]

    def _untimed(self, target: str, contestant: Contestant) -> list[tuple[str, Sequence[Case]]]:
        """What is still to be timed, but for what gave no answer and so has no time."""
        label = contestant.label
        found = [
            (name, [
                case for case in cases[: self.recipe.timed]
                if (target, label, name, case.id) not in self._timed
                and (target, label, name, "none", case.id) not in self._errors
            ])
            for name, cases in self.setting.cases[target].items()
        ]  # fmt: skip
        return [(name, cases) for name, cases in found if cases]

    def _answer(
        self,
        guard: Guard,
        target: str,
        contestant: Contestant,
        jobs: Sequence[tuple[str, str, Case]],
    ) -> None:
        graders = {name: self._fit_graders(contestant, name) for name in self.recipe.data}
        engine = guard.defense.target
        cache = None
        if contestant.defense == "undefended" and isinstance(engine, LocalEngine) and engine.runner.base is None:
            cache = UndefendedCache(engine)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start, tokens = perf_counter(), 0
        old = [self._old.get((target, contestant.label, name, attack, case.id)) for name, attack, case in jobs]
        kept = [None if one is None or _is_spoiled(one) else one for one in old]  # they lack a grade, and nothing else
        work = (
            _graded_anew(one, case, graders[name]) if one is not None else
            _answered(guard, cache, self._attacks[attack], case, graders[name], self.recipe.seed, {
                "target": target, "defense": contestant.label, "data": name, "attack": attack, "case": case.id,
                "kind": case.kind, "category": case.category})
            for one, (name, attack, case) in zip(kept, jobs, strict=True)
        )  # fmt: skip
        by_key = {(name, case.id): case for name, _, case in jobs}
        for record in runtime().iterate(as_done(work, self.recipe.concurrency)):
            if record["kind"] == "task":
                case = by_key[record["data"], record["case"]]
                record["correct"] = self.pool.correct(case, self.recipe.data[record["data"]], record["text"])
            self.take(record)
            tokens += record["usage"]["completion_tokens"]
        seconds = perf_counter() - start
        if cache is not None:
            cache.close()
        if any(kept) or (cache is not None and cache.hits):
            return  # what was looked up says nothing of times
        self._timings.write(
            {"target": target, "defense": contestant.label, "together": len(jobs), "tokens": tokens,
             "seconds": seconds, "peak_memory": _peak_memory()}
        )  # fmt: skip

    def _fit_graders(self, contestant: Contestant, data: str) -> list[Grader]:
        """Those that may grade."""
        names = _may_grade(self.recipe, self.pool, contestant, data)
        return [one for one in self.graders if one.name in names]

    def _time(self, guard: Guard, target: str, label: str, sets: Sequence[tuple[str, Sequence[Case]]]) -> None:
        """Answers prompts alone, one after another: only so are times and forwards one response's own."""
        with suppress(UserError, DefenseError):
            guard.chat("Hello", max_new_tokens=2)  # the first forward allocates; that is not the defense's time
        for data, case in ((name, case) for name, cases in sets for case in cases):
            before = self._forwards()
            start, first, tokens = perf_counter(), None, 0
            try:
                for event in guard.stream(case.messages):
                    if isinstance(event, TextDelta):
                        first = first or (perf_counter() - start if event.text else None)
                        tokens += len(event.token_ids)
            except (UserError, DefenseError):  # it stands among the answers as an error
                continue
            self._timings.write(
                {
                    "target": target,
                    "defense": label,
                    "data": data,
                    "case": case.id,
                    "seconds": perf_counter() - start,
                    "first": first,
                    "tokens": tokens,
                    "forwards": self._forwards() - before,
                }
            )

    def _forwards(self) -> int:
        return self.pool.forwards()


async def _answered(
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
    answered = record | {
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
    return answered | {"error": str(attempt.extra)} if failed else answered


async def _graded_anew(record: Record, case: Case, graders: Sequence[Grader]) -> Record:
    """An answer with the grades that it lacks."""
    lacking = [one for one in graders if record["grades"].get(one.name) == "ungraded"]
    return record | {
        "grades": record["grades"] | {one.name: await _graded(one, case, record["text"]) for one in lacking}
    }


def _is_spoiled(record: Record) -> bool:
    """Whether a model that was out had a part in an answer; what an error of an older run was, it does not say."""
    return bool(record.get("outage", "error" in record))


def _is_ungraded(record: Record) -> bool:
    return "ungraded" in record["grades"].values()


async def _graded(grader: Grader, case: Case, text: str) -> Graded:
    """The outcome of an answer; a grader that cannot tell it says nothing about the guard."""
    try:
        return (await grader.grade(case, [text]))[0]
    except (UserError, DefenseError):
        return "ungraded"


def _peak_memory() -> int | None:
    """Bytes: of the accelerator since the defense began, or else of the process since it began."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
