"""What AlignBeam costs: over the bare forwards that it cannot do without, and what running requests together saves."""

from __future__ import annotations

import statistics
from time import perf_counter

from anchorlm import CausalModel, Guard, zoo
from anchorlm.engine import LocalEngine
from anchorlm.judging import RubricJudge
from benchmarks._floor import Recorder
from benchmarks._report import alternate, ratio, report

MIXED = 3
"""Tokens that both models read. Chosen on the development split."""


def main() -> None:
    target, anchor, grader = (
        LocalEngine(CausalModel.from_pretrained(zoo.path(name)), prefix_tokens=0)
        for name in ("a-finance", "b-chat", "b-judge")
    )
    judge = RubricJudge(grader, template=zoo.JUDGE_TEMPLATE)
    guard = Guard(
        target,
        "alignbeam",
        anchor=anchor,
        judge=judge,
        mixed_tokens=MIXED,
        max_harm=0.2,
        generation={"max_new_tokens": 64},
    )
    plain = Guard(target, "undefended", generation={"max_new_tokens": 64})
    items = [
        *zoo.items("harmless", partition="test", n=16),
        *zoo.items("harmful-framed", domain="finance", partition="test", n=8),
        *zoo.items("domain", domain="finance", partition="test", n=8),
    ]
    conversations = [[{"role": "user", "content": item.prompt}] for item in items]

    recorders = [Recorder(engine) for engine in (target, anchor, grader)]
    guarded, floors, floors_with_judge, undefended = [], [], [], []
    for turn in range(3):
        for conversation in conversations:
            for recorder in recorders:
                recorder.take()
            start = perf_counter()
            guard.chat(conversation)
            whole = perf_counter() - start
            shapes = [recorder.take() for recorder in recorders]
            # The anchor must read the prompt and step once for each further mixed token; what it reads again, because
            # the response is cut into other tokens there, is our own cost.
            shapes[1] = shapes[1][:1] + shapes[1][1:][-(MIXED - 1) :]
            bare = [recorder.replay(forwards) for recorder, forwards in zip(recorders, shapes, strict=True)]
            start = perf_counter()
            plain.chat(conversation)
            alone = perf_counter() - start
            if turn:
                guarded.append(whole)
                floors.append(bare[0] + bare[1])
                floors_with_judge.append(sum(bare))
                undefended.append(alone)
    rows = [
        ["guarded response, ms", statistics.median(guarded) * 1e3, len(guarded)],
        ["floor: paired steps and continuation, ms", statistics.median(floors) * 1e3, len(floors)],
        ["guarded over the floor", ratio(guarded, floors), len(floors)],
        ["guarded over the floor with the judge's forwards", ratio(guarded, floors_with_judge), len(floors)],
        ["guarded over undefended", ratio(guarded, undefended), len(undefended)],
    ]
    for recorder in recorders:
        recorder.recording = False

    many = (conversations * 2)[:64]
    together, apart = alternate(3, lambda: guard.generate(many), lambda: [guard.chat(one) for one in many])
    rows.append(["64 at once, seconds", statistics.median(together), len(together)])
    rows.append(["64 one after another, seconds", statistics.median(apart), len(apart)])
    rows.append(["throughput gained", ratio(apart, together), len(together)])
    report("alignbeam", ["what", "median", "n"], rows)


if __name__ == "__main__":
    main()
