"""What a fitted gate opens on, and what its vectors do, on public prompts that nothing was fitted or calibrated on.

`python -m benchmarks.real_gate --recipe my.toml --artifact guard --fit` fits the target, with `--vectors MODEL`
as the anchor of the paper and the recipe's anchor as the second reader, and calibrates the gate, on the parts that
adapters may learn on (AdvBench, self-instruct, Banking77, MedQuAD) and the prompts that come with the library.
`--steering` calibrates the shift, too. Then, or without `--fit` at once, it reads the first half of each public set of
`../shared/data` in a fixed order (the second half is for the final figures), the held part of the prompts that come
with the library, and tasks. With an anchor in the recipe `reader = "anchor"` and `"both"` are read, too. `--steer 40`
also answers so many held harmful prompts with the gate forced open: undefended, with the anchor's vectors, the target's
own and random ones, at the calibrated layers and strength.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import torch

from anchorlm import CausalModel, Guard
from anchorlm.defenses.inferaligner import Aligner, calibrate_inferaligner, fit_inferaligner, save_artifact
from anchorlm.engine import LocalEngine, as_done, runtime
from anchorlm.evaluation import WORDINGS, EnglishGrader, halves
from anchorlm.guard import Recipe
from anchorlm.records import wilson
from anchorlm.steering import PLAIN, TASKS, Pooling, Readers, separation, shipped_prompts

DATA = Path(os.environ.get("ANCHORLM_DATA", "../shared/data")) / "datasets"
BANKING, MEDQUAD = WORDINGS["banking77"][0], WORDINGS["medquad"][0]

USERS, MEDICAL = "self-instruct/user_oriented_instructions.jsonl.gz", "medquad/test.jsonl.gz"


def rows(file: str) -> list[dict[str, Any]]:
    data = (DATA / file).read_bytes()
    text = (gzip.decompress(data) if file.endswith(".gz") else data).decode("utf-8")
    if ".csv" in file:
        return list(csv.DictReader(io.StringIO(text)))
    if ".jsonl" in file:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    found = json.loads(text)
    return list(found["jailbreaks"] if isinstance(found, dict) else found)


def half(prompts: Sequence[str], n: int) -> list[str]:
    """At most `n` of the first half, in an order that is always the same."""
    return halves(filter(None, prompts))[0][:n]


def advbench() -> list[str]:
    """In the order of `tools/zoo_real`: adapters learn on the first 300, where gates are fitted and calibrated, too."""
    return halves((row["goal"] for row in rows("advbench/advbench.csv.gz")), 410)[0]


def twins(domain: str | None = None) -> list[dict[str, str]]:
    """The held pairs that come with the library."""
    lines = files("anchorlm.steering").joinpath("prompts", "pairs.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines if line.strip()]
    return [pair for pair in pairs if pair["part"] == "held" and domain in (None, pair["domain"])]


def sets(n: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Harmful and harmless prompts, at most `n` of each set."""
    xstest, held = rows("xstest/xstest_prompts.csv"), shipped_prompts("held")
    jailbreaks = {
        name: [row["prompt"] for row in rows(f"jailbreakbench/{file}_vicuna-13b-v1.5.json.gz") if row["prompt"]]
        for name, file in (("GCG", "GCG_white_box"), ("JBC", "JBC_manual"))
    }
    standard = [
        row["Behavior"]
        for row in rows("harmbench/harmbench_behaviors_text_val.csv")
        if row["FunctionalCategory"] == "standard"
    ]
    medical = [row["instruction"] for row in rows("medsafetybench/ft_safety_med_n900.json.gz")]
    harmful = {
        "AdvBench": advbench()[300:][:n],
        "HarmBench standard": half(standard, n),
        "JailbreakBench": half([row["Goal"] for row in rows("jailbreakbench/jailbreakbench.csv")], n),
        "JailbreakBench, GCG": half(jailbreaks["GCG"], n),
        "JailbreakBench, JBC": half(jailbreaks["JBC"], n),
        "MaliciousInstruct": half((DATA / "refusal_direction/malicious_instruct.txt").read_text().splitlines(), n),
        "MedSafetyBench": half(medical, n),
        "XSTest unsafe": half([row["prompt"] for row in xstest if row["label"] == "unsafe"], n),
        "own twins": [pair["harmful"] for pair in twins()][:n],
        "own twins, finance": [pair["harmful"] for pair in twins("finance")][:n],
    }
    harmless = {
        "XSTest safe": half([row["prompt"] for row in xstest if row["label"] == "safe"], n),
        "own look-alikes": [pair["safe"] for pair in twins()][:n],
        "own plain": list(map(str, held.harmless[PLAIN]))[:n],
        "own tasks": list(map(str, held.harmless[TASKS]))[:n],
        "self-instruct": half(
            [row["instruction"] for row in rows("self-instruct/user_oriented_instructions.jsonl.gz")], n
        ),
        "Banking77": [BANKING.format(text) for text in half([row["text"] for row in rows("banking77/test.csv.gz")], n)],
        "MedQuAD": [
            MEDQUAD.format(text.replace(" ?", "?"))
            for text in half([row["question"] for row in rows("medquad/test.jsonl.gz")], n)
        ],
    }
    return harmful, harmless


def training(n: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Harmful, harmless and task prompts to fit on, and others to calibrate on."""

    def ordered(prompts: Sequence[str]) -> list[str]:
        texts = list(filter(None, prompts))
        return halves(texts, len(texts))[0]

    bank = ordered([row["text"] for row in rows("banking77/train.csv.gz")])[:9_000]
    medical = ordered([row["question"].replace(" ?", "?") for row in rows("medquad/train.jsonl.gz")])[:7_000]
    plain = ordered([row["instruction"] for row in rows("self-instruct/seed_tasks.jsonl.gz")])
    harmful, half_of_plain = advbench()[:300], len(plain) // 2

    def part(first: int, size: int, texts: list[str], bad: list[str]) -> dict[str, list[str]]:
        asked = bank[first : first + size]
        return {
            "harmful": bad,
            "harmless": [*texts, *asked, *medical[first : first + size]],
            "tasks": list(map(BANKING.format, bank[first + size : first + 2 * size])),
        }

    return (
        part(0, n, plain[:half_of_plain], harmful[:200]),
        part(4 * n, n, plain[half_of_plain:], harmful[200:]),
    )


def make(args: argparse.Namespace, target: LocalEngine, anchor: LocalEngine | None) -> None:
    """Fits and calibrates, and writes the artifact."""
    fitting, choosing = training(60)

    def step(what: str, done: int, total: int) -> None:
        if done % 200 == 0:
            print(f"{what}: {done} of {total}", flush=True)

    artifact = fit_inferaligner(
        target,
        args.vectors,
        fitting["harmful"],
        fitting["harmless"],
        sets=shipped_prompts("train", "fit").with_prompts(tasks=fitting["tasks"]),
        reader=anchor,
        pooling=args.pooling,
        progress=lambda done, total: step("fit", done, total),
    )
    artifact = calibrate_inferaligner(
        artifact,
        target,
        choosing["harmful"],
        choosing["harmless"],
        sets=shipped_prompts("calibrate").with_prompts(tasks=choosing["tasks"]),
        reader=anchor,
        gate_only=not args.steering,
        keep=Path(f"{args.artifact}.calibration.jsonl"),
        progress=step,
    )
    save_artifact(artifact, args.artifact)


def readings(aligner: Aligner, readers: Readers, target: LocalEngine, anchor: LocalEngine | None,
             prompts: Sequence[str]) -> list[tuple[float, bool]]:  # fmt: skip
    """Score above the threshold, and whether the gate opens, of each prompt as a user's turn."""

    async def read(place: int, prompt: str) -> tuple[int, float, bool]:
        found = await aligner.read([{"role": "user", "content": prompt}], readers, target, anchor)
        return place, found.score - found.threshold, found.open

    async def all_of_them() -> list[tuple[float, bool]]:
        jobs = (read(place, prompt) for place, prompt in enumerate(prompts))
        return [(score, opened) for _, score, opened in sorted([one async for one in as_done(jobs, 32)])]

    return runtime().run(all_of_them())


def told(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def gate_table(args: argparse.Namespace, target: LocalEngine, anchor: LocalEngine | None) -> None:
    aligner = Aligner.load(args.artifact, target, anchor)
    readers: list[Readers] = ["target", "anchor", "both"] if anchor else ["target"]
    groups = sets(args.n)
    print(f"| the gate opens on, % | n | {' | '.join(readers)} |\n|---|---|{'---|' * len(readers)}")
    scores: dict[tuple[str, str], torch.Tensor] = {}
    for kind, own in zip(("harmful", "harmless"), groups, strict=True):
        for name, prompts in own.items():
            cells = []
            for reader in readers:
                found = readings(aligner, reader, target, anchor, prompts)
                scores[reader, name] = torch.tensor([score for score, _ in found])
                cells.append(told(sum(opened for _, opened in found), len(found)))
            print(f"| {kind}: {name} | {len(prompts)} | {' | '.join(cells)} |", flush=True)
    for high, low in (("XSTest unsafe", "XSTest safe"), ("own twins", "own look-alikes")):
        areas = [separation(scores[reader, high], scores[reader, low]) or {} for reader in readers]
        shown = [f"{one['auroc']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in areas]
        print(f"| AUROC: {high} against {low} | | {' | '.join(shown)} |", flush=True)


def steer_table(args: argparse.Namespace, target: LocalEngine) -> None:
    """What the vectors do where the gate is forced open."""
    prompts = advbench()[300:][: args.steer]
    grader = EnglishGrader()
    print("\n| gate open, AdvBench | n | refused | complied | broken |\n|---|---|---|---|---|")
    knobs: dict[str, dict[str, Any]] = {"undefended": {"gate": "closed"}}
    knobs |= {
        f"{one} vectors": {"gate": "open", "answer": "steer", "vector": one} for one in ("anchor", "own", "random")
    }
    guard = Guard(target, "inferaligner", artifact=args.artifact, generation={"max_new_tokens": 48})
    for name, own in knobs.items():
        words = [grader.word(answer.text)[0] for answer in guard.generate(prompts, knobs=own)]
        cells = [told(sum(word == one for word in words), len(words)) for one in ("refused", "complied", "broken")]
        print(f"| {name} | {len(words)} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--vectors", help="the aligned model of the target's family, for --fit")
    parser.add_argument("--pooling", choices=get_args(Pooling), default="both", help="where the fitted gate reads")
    parser.add_argument("--steering", action="store_true")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--steer", type=int, default=0)
    args = parser.parse_args()
    recipe = Recipe.load(args.recipe)
    target = LocalEngine(CausalModel.load(recipe.target))
    anchor = LocalEngine(CausalModel.load(recipe.anchor)) if recipe.anchor else None
    if args.fit:
        make(args, target, anchor)
    gate_table(args, target, anchor)
    if args.steer:
        steer_table(args, target)


if __name__ == "__main__":
    main()
