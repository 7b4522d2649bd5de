"""What a thought changes under the three methods: `python -m benchmarks.thoughts [--n N]`.

a-thinks is measured with its thoughts shown, hidden and off, next to a-medicine, its twin that does not think. Answers
that are there already are not asked for again: so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anchorlm import CausalModel, Guard, zoo
from anchorlm.cli._embedded import ANCHOR, COST, JUDGE, KNOBS, REWARD, THINKER, TWIN, knobs_of
from anchorlm.defenses import find_defense
from anchorlm.engine import LocalEngine, runtime
from anchorlm.evaluation import Estimate
from anchorlm.judging import ClassifierScorer, Judge, RefusalMatcher, RubricJudge, marked
from anchorlm.models import ModelSettings
from anchorlm.records import AnchorLMError, Response, TextDelta, as_messages
from benchmarks._report import FOLDER, report

METHODS = ("undefended", "alignbeam", "inferaligner", "inferenceguard")
HARMFUL = ("harmful-plain", "harmful-framed", "jailbreak")
OTHERS = ("harmless", "look-alike", "domain")
Policy = Literal["off", "hide", "show"]
CASES: tuple[tuple[str, Policy], ...] = ((TWIN, "hide"), (THINKER, "off"), (THINKER, "hide"), (THINKER, "show"))
"""Who answers, and what becomes of thoughts. The twin has none."""

DOMAIN = "medicine"
LENGTH = 64
MARKS = ("<think", "think>")
"""What no answer may hold."""

Found = dict[str, Any]


def sample(split: str, partition: str, n: int) -> list[zoo.Item]:
    """The first prompts of a split."""
    own = DOMAIN if split in ("harmful-framed", "domain") else None
    return zoo.items(split, domain=own, partition=partition, n=n)  # type: ignore[arg-type]


class Models:
    """Every model that takes part, loaded when it is first needed."""

    def __init__(self) -> None:
        self._engines: dict[str, LocalEngine] = {}
        self._scorers: dict[str, ClassifierScorer] = {}

    def engine(self, name: str) -> LocalEngine:
        """A model."""
        if name not in self._engines:
            self._engines[name] = LocalEngine(CausalModel.from_pretrained(zoo.path(name)))
        return self._engines[name]

    def judge(self) -> RubricJudge:
        """The rubric judge."""
        return RubricJudge(self.engine(JUDGE), template=zoo.JUDGE_TEMPLATE)

    def scorer(self, name: str) -> ClassifierScorer:
        """The cost or the reward model."""
        if name not in self._scorers:
            self._scorers[name] = ClassifierScorer.load(ModelSettings(path=str(zoo.path(name))))
        return self._scorers[name]

    def guard(self, target: str, policy: Policy, method: str) -> Guard:
        """One of the methods around a target."""
        needs = find_defense(method).needs
        return Guard(
            self.engine(target), method,
            anchor=self.engine(ANCHOR) if needs.anchor else None,
            judge=self.judge() if needs.judge else None,
            cost=self.scorer(COST) if needs.cost else None,
            reward=self.scorer(REWARD) if needs.reward else None,
            thoughts=policy, generation={"max_new_tokens": LENGTH}, **knobs_of(target, method),
        )  # fmt: skip


def ask(guard: Guard, items: Sequence[zoo.Item]) -> list[tuple[zoo.Item, Response]]:
    """Some prompts with their answers."""
    requests = [guard.request(as_messages(item.prompt)) for item in items]
    found = []
    for index, outcome in guard.map(requests, concurrency=max(1, len(requests))):
        if isinstance(outcome, AnchorLMError):
            raise outcome
        found.append((items[index], outcome))
    return found


def streamed(guard: Guard, item: zoo.Item) -> str:
    """The answer to a prompt, piece by piece."""
    return "".join(event.text for event in guard.stream(item.prompt) if isinstance(event, TextDelta))


def answers(journal: Path, partition: str, n: int, streams: int, models: Models) -> list[Found]:
    """Every answer: those in the journal, and the others, which are added to it.

    Args:
        journal: One line per answer.
        partition: Of the prompts.
        n: Prompts of each split.
        streams: How many of them are also streamed.
        models: Who takes part.
    """
    lines = [json.loads(line) for line in journal.read_text("utf-8").splitlines()] if journal.exists() else []
    known = {(one["target"], one["thoughts"], one["method"], one["id"]): one for one in lines}
    found = []
    with journal.open("a", encoding="utf-8") as file:
        for method in METHODS:
            for target, policy in CASES:
                for split in (*HARMFUL, *OTHERS):
                    items = sample(split, partition, n)
                    missing = [item for item in items if (target, policy, method, item.id) not in known]
                    if missing:
                        guard = models.guard(target, policy, method)
                        again = {item.id for item in items[:streams]}
                        for item, response in ask(guard, missing):
                            same = streamed(guard, item) == response.text if item.id in again else None
                            one = line(target, policy, method, item, response, same)
                            known[target, policy, method, item.id] = one
                            file.write(json.dumps(one) + "\n")
                        file.flush()
                    found += [known[target, policy, method, item.id] for item in items]
    return found


def line(target: str, policy: str, method: str, item: zoo.Item, response: Response, same: bool | None) -> Found:
    """What is kept of one answer."""
    return {
        "target": target, "thoughts": policy, "method": method, "split": item.split, "id": item.id,
        "prompt": item.prompt,
        "text": response.text, "thought": response.thought, "tokens": response.usage.reasoning_tokens,
        "fallback": response.finish_reason == "refusal", "outcome": str(zoo.grade(item, response.text)),
        "correct": zoo.is_correct(item, response.text) if item.split == "domain" else None, "streamed": same,
    }  # fmt: skip


def rows(found: Sequence[Found], splits: Sequence[str]) -> list[list[Any]]:
    """The table of some splits: a row for each method, target and policy."""
    table = []
    for method in METHODS:
        for target, policy in CASES:
            own = [one for one in found if (one["method"], one["target"], one["thoughts"]) == (method, target, policy)]
            own = [one for one in own if one["split"] in splits]
            told = [_rate([one["outcome"] == outcome for one in own]) for outcome in ("refused", "complied", "broken")]
            right = [one["correct"] for one in own if one["correct"] is not None]
            again = [one["streamed"] for one in own if one["streamed"] is not None]
            thought = sum(one["tokens"] > 0 for one in own)
            leaks = sum(any(mark in one["text"] for mark in MARKS) for one in own)
            table.append([
                method, target, "none" if target == TWIN else policy, len(own), *told, _rate(right) if right else "-",
                thought, leaks, f"{sum(again)} of {len(again)}",
            ])  # fmt: skip
    return table


def verdicts(found: Sequence[Found], judge: Judge) -> list[list[Any]]:
    """How often the judge, and the refusal matcher, say of an answer with its thought what they say of it alone."""
    own = [one for one in found if one["method"] == "undefended" and one["thought"]]
    limit = KNOBS["alignbeam"]["max_harm"]
    matcher = RefusalMatcher()
    table = []
    for splits, name in ((HARMFUL, "harmful"), (OTHERS, "others")):
        some = [one for one in own if one["split"] in splits]
        pairs = [(marked(one["thought"], one["text"]), one["text"]) for one in some]
        talks = [as_messages(one["prompt"]) for one in some]
        graded = [runtime().run(judge(talk, pair)) for talk, pair in zip(talks, pairs, strict=True)]
        side = [(one.harm > limit) == (other.harm > limit) for one, other in graded]
        same = [matcher.classify(with_thought) is matcher.classify(alone) for with_thought, alone in pairs]
        table += [[f"judge, {name}", len(side), _rate(side)], [f"matcher, {name}", len(same), _rate(same)]]
    return table


def _rate(hits: Sequence[bool]) -> str:
    one = Estimate.of_rate(sum(hits), len(hits))
    return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


COLUMNS = ("method", "target", "thoughts", "n", "refused %", "complied %", "broken %", "right %", "thought first",
           "marks in an answer", "streamed as whole")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints one table for harmful prompts and one for the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50, help="prompts of each split")
    parser.add_argument("--partition", default="test", help="dev while you choose, test once everything is settled")
    parser.add_argument("--streams", type=int, default=5, help="prompts of each split that are streamed as well")
    parser.add_argument("--journal", type=Path, default=FOLDER / "thoughts.jsonl", help="where answers are kept")
    chosen = parser.parse_args(argv)
    chosen.journal.parent.mkdir(parents=True, exist_ok=True)
    models = Models()
    found = answers(chosen.journal, chosen.partition, chosen.n, chosen.streams, models)
    report("thoughts harmful", COLUMNS, rows(found, HARMFUL))
    report("thoughts others", COLUMNS, rows(found, OTHERS))
    report("thoughts verdicts", ("with the thought as alone", "n", "same %"), verdicts(found, models.judge()))


if __name__ == "__main__":
    main()
