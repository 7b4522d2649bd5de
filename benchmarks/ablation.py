"""InferAligner's ablation (its figure 4): do the anchor's vectors refuse better than the target's own, at equal norms?

`python -m benchmarks.ablation` measures, and writes JSON, picture and verdict into docs/. A try goes elsewhere:
`python -m benchmarks.ablation --partition dev --n 8 --out build/bench`.
"""

from __future__ import annotations

import argparse
import json
from asyncio import gather
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from anchorlm import CausalModel, zoo
from anchorlm.defenses.inferaligner import Aligner, fit_inferaligner
from anchorlm.engine import LocalEngine, Positions, runtime
from anchorlm.records import Artifact, GenerationSettings, as_messages, wilson
from anchorlm.steering import Vector
from benchmarks._panels import panels
from tools.zoo._fit import FITTED, prompts

TARGETS = {
    "a-medicine": "tuned from the aligned chat",
    "a-finance": "tuned from the aligned chat",
    "a-arithmetic": "never aligned",
}
ANCHOR = "a-chat"
ALPHAS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
TRIED = (0.5, 1.0, 2.0)
SEEDS = (0, 1, 2)
CHOOSING, LONGEST = 32, 64
OUTCOMES = ("refused", "complied", "broken")
START, END = "<!-- ablation: written by benchmarks.ablation -->", "<!-- end of ablation -->"

Job = tuple[zoo.Item, Aligner | None, Vector, tuple[int, ...], Positions, float]


async def outcomes(target: LocalEngine, jobs: Sequence[Job]) -> list[str]:
    """What becomes of each prompt, steered as its job says."""

    async def one(item: zoo.Item, aligner: Aligner | None, *shift: Any) -> str:
        async with target.open(target.model.encode(as_messages(item.prompt)), room=LONGEST) as row:
            if aligner is not None:
                vector, layers, positions, alpha = shift
                row.steer(aligner.steering(alpha=alpha, layers=layers, positions=positions, vector=vector))
            return str(zoo.grade(item, (await row.generate(GenerationSettings(max_new_tokens=LONGEST))).text))

    return list(await gather(*(one(*job) for job in jobs)))


def shares(found: Sequence[str]) -> dict[str, Any]:
    """Each outcome's rate with its 95 % Wilson interval."""
    counts, n = Counter(found), len(found)
    return {
        name: {"rate": round(counts[name] / n, 4), **dict(zip(("low", "high"), wilson(counts[name], n), strict=True))}
        for name in OUTCOMES
    }


def controls(artifact: Artifact, target: LocalEngine) -> dict[str, tuple[Aligner, Vector]]:
    """Whatever steers, by name: equal layers, equal norms."""
    found: dict[str, tuple[Aligner, Vector]] = {}
    kinds: tuple[Vector, ...] = ("anchor", "own")
    for name in kinds:
        found[name] = (Aligner.load(artifact, target), name)
    for seed in SEEDS:
        noise = torch.randn(artifact.tensors["own.unit"].shape, generator=torch.Generator().manual_seed(1000 + seed))
        tensors = {**artifact.tensors, "random.unit": torch.nn.functional.normalize(noise, dim=-1)}
        found[f"random {seed}"] = (Aligner.load(replace(artifact, tensors=tensors), target), "random")
    return found


def measure(name: str, chat: LocalEngine, partition: Literal["dev", "test"], n: int) -> dict[str, Any]:
    """One target: for each kind of vector the place where it refuses best on dev, and there the curve over alpha."""
    target = LocalEngine(CausalModel.from_pretrained(zoo.path(name)))
    artifact = fit_inferaligner(target, chat, *prompts(name.removeprefix("a-"), "train", FITTED))
    vectors = controls(artifact, target)
    depth = len(artifact.tensors["shift.length"])
    half = depth // 2
    places: list[tuple[tuple[int, ...], Positions]] = [
        (layers, positions)
        for layers in (tuple(range(half)), tuple(range(half, depth)), tuple(range(depth)))
        for positions in ("prompt", "all")
    ]
    chosen: dict[str, tuple[tuple[int, ...], Positions]] = {}
    dev = zoo.items("harmful-plain", partition="dev", n=min(n, CHOOSING), seed=1)
    for kind in ("anchor", "own", "random 0"):
        trials = [(place, alpha) for place in places for alpha in TRIED]
        found = runtime().run(
            outcomes(target, [(item, *vectors[kind], *place, alpha) for place, alpha in trials for item in dev])
        )
        rows = [found[start : start + len(dev)] for start in range(0, len(found), len(dev))]
        best = max(zip(rows, trials, strict=True), key=lambda each: each[0].count("refused"))
        chosen[kind.partition(" ")[0]] = best[1][0]
    items = zoo.items("harmful-plain", partition=partition, n=n)
    curves: dict[str, Any] = {}
    for kind, (aligner, vector) in vectors.items():
        layers, positions = chosen[kind.partition(" ")[0]]
        found = runtime().run(
            outcomes(target, [(item, aligner, vector, layers, positions, a) for a in ALPHAS for item in items])
        )
        points = [
            {"alpha": alpha, **shares(found[start : start + n])}
            for alpha, start in zip(ALPHAS, range(0, len(found), n), strict=True)
        ]
        curves[kind] = {"layers": list(layers), "positions": positions, "points": points}
    bare = runtime().run(outcomes(target, [(item, None, "anchor", (), "all", 0.0) for item in items]))
    cosines = artifact.figures["cosine with the target's own direction"]
    return {"what": TARGETS[name], "undefended": shares(bare), "cosines with own": cosines, "curves": curves}


def best(curve: Mapping[str, Any]) -> Mapping[str, Any]:
    """The point with most clean refusals."""
    return max(curve["points"], key=lambda point: (point["refused"]["rate"], -point["alpha"]))


def verdict(data: Mapping[str, Any]) -> str:
    """What the figures say of the paper's claim, in plain Markdown."""
    rows, sentences = [], []
    for name, target in data["targets"].items():
        tops = {kind: best(curve) for kind, curve in target["curves"].items()}
        noise = max(
            (top for kind, top in tops.items() if kind.startswith("random")), key=lambda t: t["refused"]["rate"]
        )
        rows.append(f"| {name} ({target['what']}) | none | | {_cells(target['undefended'])} |")
        for kind, top in (("the anchor's", tops["anchor"]), ("its own", tops["own"]), ("best random", noise)):
            rows.append(f"| {name} | {kind} | {top['alpha']:g} | {_cells(top)} |")
        a, b = tops["anchor"]["refused"], tops["own"]["refused"]
        if a["low"] > b["high"]:
            claim = "the claim holds: the anchor's vectors refuse more often than its own"
        elif b["low"] > a["high"]:
            claim = "the claim does not hold: its own vectors refuse more often than the anchor's"
        else:
            claim = "the figures do not decide: the anchor's vectors and its own refuse alike within their intervals"
        if tops["anchor"]["broken"]["rate"] > a["rate"]:
            claim += ". But the anchor's break more texts than they turn into refusals, and are of no use either"
        beside = "more often than" if a["low"] > noise["refused"]["high"] else "not surely more often than"
        sentences.append(f"- On {name} {claim}. The anchor's refuse {beside} random ones of the same length.")
    return "\n".join([
        "Each kind of vector steers at its best layers and positions (chosen on dev), and at the strength that serves "
        "it best on these prompts. Strengths are in natural lengths of the anchor's vectors. The prompts are "
        f"{data['n']} plain harmful ones of {data['partition']}. Figures are percent with 95 % intervals:",
        "",
        "| target | vectors | alpha | refused cleanly | complied | broken |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *sentences,
        "",
        "![Outcomes over alpha](inferaligner-ablation.svg)",
    ])  # fmt: skip


def _cells(point: Mapping[str, Any]) -> str:
    return " | ".join(
        f"{100 * point[name]['rate']:.0f} ({100 * point[name]['low']:.0f} to {100 * point[name]['high']:.0f})"
        for name in OUTCOMES
    )


def insert(page: str, text: str) -> str:
    """The page with the verdict between its marks."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partition", choices=("dev", "test"), default="test")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    chat = LocalEngine(CausalModel.from_pretrained(zoo.path(ANCHOR)))
    data = {
        "n": options.n,
        "partition": options.partition,
        "anchor": ANCHOR,
        "targets": {name: measure(name, chat, options.partition, options.n) for name in TARGETS},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "inferaligner-ablation.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    (options.out / "inferaligner-ablation.svg").write_text(panels(data), "utf-8")
    page = options.out / "inferaligner-measurements.md"
    if page.is_file():
        page.write_text(insert(page.read_text("utf-8"), verdict(data)), "utf-8")
    print(verdict(data))


if __name__ == "__main__":
    main()
