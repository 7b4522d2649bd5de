"""What the knob `evidence_bias` does around a real specialist, on public prompts that nothing was fitted on.

`python -m benchmarks.evidence --target real-finance-base` reads the evidence of harm of the first half of each set, as
`benchmarks.real_gate` has them. For some values of the knob it prints how many prompts of each set are refused at
once, and how many are left to the target alone. What lies between is guided. Nothing is generated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from anchorlm import CausalModel
from anchorlm.defenses.alignbeam import Evidence, Seen
from anchorlm.engine import LocalEngine, as_done, runtime
from anchorlm.records import Request, as_messages
from anchorlm.steering import GateReader
from anchorlm.zoo import path
from benchmarks.real_gate import sets, told

BIASES = (-1.0, 0.0, 0.75, 1.5, 2.25)
ANCHOR = "real-anchor"


def seen(evidence: Evidence, target: LocalEngine, anchor: LocalEngine, prompts: Sequence[str]) -> list[Seen]:
    """The evidence of each prompt as a user's turn, in any order. The anchor is always read."""

    async def read(prompt: str) -> Seen:
        request = Request(as_messages(prompt))
        async with target.open(target.model.encode(request.messages)) as row:
            return await evidence.read(row, target, anchor, request)

    async def all_of_them() -> list[Seen]:
        return [one async for one in as_done((read(prompt) for prompt in prompts), 32)]

    return runtime().run(all_of_them())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="real-finance-base")
    parser.add_argument("--n", type=int, default=100)
    args = parser.parse_args()
    target, anchor = (LocalEngine(CausalModel.from_pretrained(name)) for name in (args.target, ANCHOR))
    gate = GateReader.load(path(args.target) / "inferaligner", target, anchor)
    evidence = Evidence.load(path(args.target) / "alignbeam", target, anchor, gate)
    heads = " | ".join(f"{bias:+g}" for bias in BIASES)
    print(f"| refused at once; left alone, % | n | {heads} |\n|---|---|{'---|' * len(BIASES)}")
    for kind, own in zip(("harmful", "harmless"), sets(args.n), strict=True):
        for name, prompts in own.items():
            found = seen(evidence, target, anchor, prompts)
            cells = []
            for bias in BIASES:
                sure = sum(not one.score + bias < one.high for one in found)
                alone = sum(one.score + bias <= one.threshold for one in found)
                cells.append(f"{told(sure, len(found))}; {told(alone, len(found))}")
            print(f"| {kind}: {name} | {len(found)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
