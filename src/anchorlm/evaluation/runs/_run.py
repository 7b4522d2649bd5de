from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from anchorlm.engine import as_done, runtime
from anchorlm.evaluation.runs._answering import Record, answered, graded_anew, is_spoiled, is_ungraded
from anchorlm.evaluation.runs._cache import UndefendedCache
from anchorlm.evaluation.runs._contestants import Contestant, Embedded, Pool
from anchorlm.evaluation.runs._exclusion import may_grade
from anchorlm.evaluation.runs._folder import artifacts, check, prepare
from anchorlm.evaluation.runs._recipe import CompareRecipe
from anchorlm.evaluation.runs._setting import Setting
from anchorlm.evaluation.runs._shares import Crew, Share, cut
from anchorlm.evaluation.runs._stored import ANSWERS, PROBES, TIMINGS, Key, key, read_answers, read_probes
from anchorlm.evaluation.runs._workers import Pair, records
from anchorlm.evaluation.tasks._attacks import parse_attack
from anchorlm.evaluation.tasks._cases import Case
from anchorlm.evaluation.tasks._graders import Grader
from anchorlm.files import Journal
from anchorlm.guard import Guard
from anchorlm.records import Artifact, DefenseError, TextDelta, UserError

if sys.platform == "win32":
    resource = None
else:
    import resource

_log = logging.getLogger("anchorlm")

Progress = Callable[[int, int, str], None]
"""Told how many answers of how many are there, and what is being answered."""


def compare(
    recipe: CompareRecipe,
    folder: str | Path,
    *,
    embedded: Embedded | None = None,
    workers: int = 1,
    crew: Crew | None = None,
    progress: Progress | None = None,
) -> Path:
    """Runs a comparison. What the folder holds already is not run again, but for what an outage spoiled.

    Every answer is written with its grades the moment it is there, so a run that was killed goes on where it was.

    Args:
        recipe: What is compared.
        folder: Gets the run.
        embedded: Knows the embedded models, if the recipe names any.
        workers: Processes that answer, each with models of its own. Single answers are timed by one alone, at the end.
        crew: Who answers in place of these processes, on a cluster say. Single answers are timed here all the same.
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
    with (
        Journal(place / ANSWERS) as answers,
        Journal(place / TIMINGS) as timings,
        Journal(place / PROBES) as probes,
    ):
        run = _Run(setting, pool, answers, timings, probes, progress or (lambda done, total, what: None))
        if crew is not None:
            for some in crew(recipe, place, embedded, run.shares):
                for record in some:
                    run.take(record)
        elif workers > 1:
            for record in records(setting, place, embedded, run.open_pairs, workers, answer_pair):
                run.take(record)
        run.everything()
    return place


def answer_pair(setting: Setting, pool: Pool, hand_over: Callable[[Record], None], pair: Pair) -> None:
    """What a worker does: everything that is missing of one defense on one target, but for times of single answers."""
    target, place = pair
    done = [record for record in read_answers(pool.folder) if record["target"] == target]
    tried = [record for record in read_probes(pool.folder) if record["target"] == target]
    run = _Run(setting, pool, _Sent(done, hand_over), _Sent([], hand_over), _Sent(tried, hand_over))
    run.answer_missing(target, setting.contestants[place])


def answer_share(setting: Setting, pool: Pool, share: Share) -> list[Record]:
    """What a worker of a `Crew` does: the answers of a share, and its own time."""
    found: list[Record] = []
    contestant = setting.contestants[share.place]
    tried = [{"target": share.target, "defense": contestant.label}] if share.tried else []
    answers, others, probes = _Sent(share.old, found.append), _Sent([], found.append), _Sent(tried, found.append)
    _Run(setting, pool, answers, others, probes, only=frozenset(share.keys)).answer_missing(share.target, contestant)
    return found


def _check_contestants(setting: Setting, pool: Pool) -> None:
    """Says before the first answer what would else end the run at a defense's turn, hours later maybe.

    Raises:
        UserError: No one may grade a defense, or an artifact is missing or damaged.
    """
    for contestant in setting.contestants:
        for data in setting.recipe.data:
            may_grade(setting.recipe, pool, contestant, data)
    for folder in dict.fromkeys(artifacts(setting, pool).values()):
        Artifact.load(folder)


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
        probes: Journal | _Sent,
        progress: Progress = lambda done, total, what: None,
        only: frozenset[Key] | None = None,
    ) -> None:
        self._only = only
        self.setting, self.pool, self.recipe = setting, pool, setting.recipe
        self._answers, self._timings, self._probes, self._progress = answers, timings, probes, progress
        self._tried = {(one["target"], one["defense"]) for one in probes.records}
        self._old = {key(record): record for record in answers.records}
        self._done = {at for at, record in self._old.items() if not (is_spoiled(record) or is_ungraded(record))}
        self._errors = {at for at, record in self._old.items() if "error" in record}
        self._timed = {(one["target"], one["defense"], one["data"], one["case"]) for one in timings.records
                       if "case" in one}  # fmt: skip
        self._attacks = {one.name: one for one in map(parse_attack, ("none", *self.recipe.attacks))}
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

    @property
    def shares(self) -> list[Share]:
        """What is missing, target by target, in pieces that are answered together."""
        found: list[Share] = []
        for target, place in self.open_pairs:
            label = self.setting.contestants[place].label
            keys = [(target, label, name, attack, case.id) for name, attack, case in
                    self._missing(target, self.setting.contestants[place])]  # fmt: skip
            old = [self._old.get(key) for key in keys]
            tried = (target, label) in self._tried
            found += cut(target, place, keys, old, self.recipe.concurrency, tried=tried)
        return found

    def take(self, record: Record) -> None:
        """Writes an answer down, or a worker's time. The last line of an answer counts."""
        if "together" in record:
            self._timings.write(record)
            return
        if "findings" in record:
            self._take_probe(record)
            return
        at = key(record)
        self._done.add(at)  # whatever came of it, it is not tried again in this run
        again = at in self._old and (is_spoiled(record) or record == self._old[at])
        if isinstance(self._answers, _Sent) or not again:  # what fails again does not take the place of what was there
            self._answers.write(record)
            (self._errors.add if "error" in record else self._errors.discard)(at)
        self._progress(len(self._done), self.setting.expected, f"{record['target']} {record['defense']}")

    def answer_missing(self, target: str, contestant: Contestant) -> None:
        """Every answer of one defense on one target that is not there yet."""
        jobs = self._missing(target, contestant)
        if jobs and self.recipe.probe.run and (target, contestant.label) not in self._tried:
            found = self.pool.guard(target, contestant).probe(raw=False)
            findings = [asdict(one) for one in found.findings]
            self._take_probe({"target": target, "defense": contestant.label, "findings": findings})
        for without in dict.fromkeys(self._attacks[attack].ablation for _, attack, _ in jobs):
            guard = self.pool.guard(target, contestant, without)
            some = [job for job in jobs if self._attacks[job[1]].ablation == without]
            self._answer(guard, target, contestant, some)

    def _take_probe(self, record: Record) -> None:
        """Writes down what a guard did when it was tried: a finding like others, at which no comparison ends."""
        self._tried.add((record["target"], record["defense"]))
        self._probes.write(record)
        for one in record["findings"]:
            if one["passed"] is False and not isinstance(self._probes, _Sent):
                _log.warning("%s on %s %s", record["defense"], record["target"], one["said"])

    def _missing(self, target: str, contestant: Contestant) -> list[tuple[str, str, Case]]:
        return [
            (name, attack, case)
            for name, cases in self.setting.cases[target].items()
            for case in cases
            for attack in self.setting.attacks(case)
            if self._wanted((target, contestant.label, name, attack, case.id))
        ]

    def _wanted(self, key: Key) -> bool:
        return key not in self._done and (self._only is None or key in self._only)

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
        import torch

        from anchorlm.engine import LocalEngine

        graders = {name: self._fit_graders(contestant, name) for name in self.recipe.data}
        engine = guard.defense.target
        cache = None
        if contestant.defense == "undefended" and isinstance(engine, LocalEngine) and engine.runner.base is None:
            cache = UndefendedCache(engine)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.pool.forget()
        start, tokens = perf_counter(), 0
        run = self.setting.run
        old = [self._old.get((target, contestant.label, name, attack, case.id)) for name, attack, case in jobs]
        kept = [None if one is None or is_spoiled(one) else one for one in old]  # they lack a grade, and nothing else
        work = (
            graded_anew(one, case, graders[name]) if one is not None else
            answered(guard, cache, self._attacks[attack], case, graders[name], self.recipe.seed, {
                "run": run, "target": target, "defense": contestant.label, "data": name, "attack": attack,
                "case": case.id, "kind": case.kind, "category": case.category})
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
        names = may_grade(self.recipe, self.pool, contestant, data)
        return [one for one in self.graders if one.name in names]

    def _time(self, guard: Guard, target: str, label: str, sets: Sequence[tuple[str, Sequence[Case]]]) -> None:
        """Answers prompts alone, one after another: only so are times and forwards one response's own."""
        with suppress(UserError, DefenseError):
            guard.chat("Hello", max_new_tokens=2)  # the first forward allocates; that is not the defense's time
        for data, case in ((name, case) for name, cases in sets for case in cases):
            self.pool.forget()
            before = self.pool.forwards()
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
                    "forwards": self.pool.forwards() - before,
                }
            )


def _peak_memory() -> int | None:
    """Bytes: of the accelerator since the defense began, or else of the process since it began."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
