"""When an anchor should guide, and by which rule, on the real pair: a specialist on SmolLM2, anchored by Gemma 3 270M.

Answers of each arm are written once and kept, so that an interrupted run goes on. Only the first half of every
published set is looked at (a fixed shuffle). The second half is left to the final figures. No judge: what an arm alone
does is to be seen. Wanted: the two bases (`make real`) and the members (`make zoo-real`).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchorlm.defenses import AlignBeam
from anchorlm.defenses.alignbeam import MixedSequence, Mixture
from anchorlm.engine import LocalEngine
from anchorlm.evaluation import Estimate, Half, RefusalGrader, answer_line, halves, load_cases
from anchorlm.guard import Guard
from benchmarks._report import report
from benchmarks.judges import DATASETS
from tools.zoo_real import bases

OWN = Path(__file__).parents[1] / "src" / "anchorlm" / "steering" / "prompts"
TOKENS, TOGETHER = 24, 32

HARMFUL = ("advbench", "harmbench", "finance-framed", "twins", "gcg", "jbc")
"""Kinds of prompts that should be refused. Of the others none should."""

ARMS: dict[str, dict[str, Any]] = {
    "undefended": {},
    "always, K = 1": {"gate": "always", "candidates": 1},
    "always, K = 3": {"gate": "always"},
    "gate, K = 1": {"gate": "inferaligner", "candidates": 1},
    "evidence, K = 1": {"candidates": 1},
    "evidence, K = 1, alpha = 0.75": {"candidates": 1, "alpha": 0.75},
    "evidence, K = 1, alpha = 1": {"candidates": 1, "alpha": 1.0},
    "evidence, K = 3": {},
    "contrast 1, K = 1": {"gate": "always", "candidates": 1, "contrast": 1.0},
    "contrast 2, K = 1": {"gate": "always", "candidates": 1, "contrast": 2.0},
    "contrast 4, K = 1": {"gate": "always", "candidates": 1, "contrast": 4.0},
}


def contrast(p: Tensor, q: Tensor, base: Tensor, weight: float, plausible: float = 1e-3, least: float = 1e-6) -> Tensor:
    """Proxy-tuning (arXiv 2401.08565) across vocabularies: `log p + weight (log q - log q_base)`, renormalized.

    Args:
        p: The target's distribution (V,).
        q: The aligned anchor's, over the same vocabulary (V,).
        base: That of the anchor before it was aligned (V,).
        weight: Of the difference. 0 gives the target's own distribution.
        plausible: Tokens less likely to the target than this share of its likeliest one keep no mass.
        least: Added to both anchors' probabilities: a token that neither says is not changed.
    """
    shifted = p.log() + weight * ((q + least).log() - (base + least).log())
    return shifted.masked_fill(p < plausible * p.max(), float("-inf")).softmax(dim=-1) if weight else p


def kinds(limit: int) -> dict[str, list[str]]:
    """Prompts by kind: the first half of each published set, shuffled as everywhere, and held ones of our own."""
    pairs = [one for one in _lines(OWN / "pairs.jsonl") if one["part"] == "held"]
    finance = [one for one in pairs if one["domain"] == "finance"]
    xstest = _csv("xstest/xstest_prompts.csv")
    harmbench = [row for row in _csv("harmbench/harmbench_behaviors_text_val.csv")
                 if row["FunctionalCategory"] == "standard"]  # fmt: skip
    found = {
        "advbench": halves((row["goal"] for row in _csv("advbench/advbench.csv.gz")), 410)[0][300:],
        "harmbench": halves(row["Behavior"] for row in harmbench)[0],
        "finance-framed": [one["harmful"] for one in finance],
        "twins": [one["harmful"] for one in pairs if one["domain"] != "finance"],
        "gcg": halves(_published("GCG_white_box"))[0],
        "jbc": halves(_published("JBC_manual"))[0],
        "xstest": halves(row["prompt"] for row in xstest if row["label"] == "safe")[0],
        "finance-look-alikes": [one["safe"] for one in finance],
        "look-alikes": [one["safe"] for one in pairs if one["domain"] != "finance"],
        "plain": [one["prompt"] for one in _lines(OWN / "plain.jsonl") if one["part"] == "held"],
        "banking77": list(intents()),
    }
    return {kind: prompts[:limit] for kind, prompts in found.items()}


def intents() -> dict[str, str]:
    """The right answers to questions of the first half of Banking77's test."""
    cases = load_cases(DATASETS / "banking77/test.csv.gz", half=Half("dev"))
    return {case.prompt: str(case.answer) for case in cases}


def _published(attack: str) -> Iterator[str]:
    with gzip.open(DATASETS / "jailbreakbench" / f"{attack}_vicuna-13b-v1.5.json.gz", "rt", encoding="utf-8") as file:
        yield from (row["prompt"] for row in json.load(file)["jailbreaks"] if row.get("prompt"))


def _csv(name: str) -> list[dict[str, str]]:
    data = (DATASETS / name).read_bytes()
    return list(csv.DictReader(io.StringIO((gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8"))))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]


class Contrasting(AlignBeam):
    """AlignBeam whose rule is the contrast of its anchor with the same model before it was aligned."""

    base: LocalEngine
    weight: float

    async def start(self) -> None:
        await super().start()
        opened, guidance = self.guidance.open, self.guidance

        async def both(stack: Any, row: Any, anchor: Any, request: Any, settings: Any, **more: Any) -> MixedSequence:
            aligned = await opened(stack, row, anchor, request, settings, **more)
            other = await opened(stack, row, self.base, request, settings, **more)
            return Contrasted(aligned, other, self.weight)

        guidance.open = both  # type: ignore[method-assign]


class Contrasted(MixedSequence):
    """A response under the contrast of two guides."""

    def __init__(self, aligned: MixedSequence, other: MixedSequence, weight: float) -> None:
        super().__init__(aligned.target, aligned.guide, aligned._vocabulary, alpha=1.0, generation=aligned.generation)
        self.other, self.weight = other, weight

    def fork(self) -> Contrasted:
        raise NotImplementedError("one candidate alone")

    async def mixture(self) -> Mixture:
        step = await super().mixture()
        assert self.other.guide is not None
        assert step.q is not None
        tokens = self.response
        base = await self.other.guide.distribution(self._vocabulary.decode(tokens), tokens)
        return Mixture(contrast(step.p, step.q, base.to(step.p.device), self.weight), step.p, step.q, 1.0)

    def release_guide(self) -> None:
        super().release_guide()
        if self.other.guide is not None:
            self.other.guide.close()
            self.other.guide = None


class Arms:
    """The guards, made when they are first needed, around one target and one anchor."""

    def __init__(self, build: Path, target: str, artifacts: Path) -> None:
        self.build, self.artifacts = build, artifacts
        self.target = LocalEngine(bases.load(target) if target in bases.BASES else bases.member(target, build))

    @cached_property
    def anchor(self) -> LocalEngine:
        return LocalEngine(bases.member("anchor", self.build))

    def guard(self, arm: str) -> Guard:
        """The guard of an arm."""
        knobs, generation = dict(ARMS[arm]), {"max_new_tokens": TOKENS}
        if arm == "undefended":
            return Guard(self.target, generation=generation)
        kind: Any = "alignbeam"
        if (weight := knobs.pop("contrast", None)) is not None:
            base = LocalEngine(bases.load("gemma"))
            kind = type("Weighted", (Contrasting,), {"weight": weight, "base": base})
        gate, evidence = self.artifacts / "inferaligner", self.artifacts / "alignbeam"
        if knobs.get("gate") != "always" and (gate / "artifact.json").is_file():
            knobs["artifact"] = str(gate)
        if "gate" not in knobs:
            knobs["evidence"] = str(evidence)
        return Guard(self.target, kind, anchor=self.anchor, judge=lambda messages, response: 0.0, trace_top=0,
                     generation=generation, **knobs)  # fmt: skip


def written(file: Path, arms: Sequence[str], limit: int, make: Any) -> list[dict[str, Any]]:
    """What every arm answers, with the gate's word. Kept in `file`."""
    rows = _lines(file) if file.is_file() else []
    known = {(row["arm"], row["prompt"]) for row in rows}
    for arm in arms:
        todo = [(kind, prompt) for kind, prompts in kinds(limit).items() for prompt in prompts
                if (arm, prompt) not in known]  # fmt: skip
        todo.sort(key=lambda one: len(one[1]) // 40)
        if not todo:
            continue
        guard = make(arm)
        for start in range(0, len(todo), TOGETHER):
            part = todo[start : start + TOGETHER]
            with file.open("a", encoding="utf-8") as out:
                for (kind, prompt), response in zip(part, guard.generate([prompt for _, prompt in part]), strict=True):
                    gate = next((dict(one.data) for one in response.trace if one.kind == "gate"), {})
                    rows.append({"arm": arm, "kind": kind, "prompt": prompt, "text": response.text,
                                 "share": gate.get("share", float(gate.get("open", True)))})  # fmt: skip
                    out.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            print(f"{arm}: {start + len(part)} of {len(todo)}", flush=True)
    return rows


def figures(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[list[str]]:
    """A line for each arm and kind: refused, complied. Right of the tasks. Changed against undefended. Mean share."""
    grader, right, table = RefusalGrader(), intents(), []
    bare = {row["prompt"]: row["text"] for row in rows if row["arm"] == "undefended"}
    for arm in arms:
        for kind in dict.fromkeys(row["kind"] for row in rows):
            mine = [row for row in rows if (row["arm"], row["kind"]) == (arm, kind)]
            outcomes = [grader.outcome(row["text"]) for row in mine]
            counts = [outcomes.count(name) for name in ("refused", "complied")]
            good = (
                sum(answer_line(row["text"]) == right[row["prompt"]] for row in mine) if kind == "banking77" else None
            )
            changed = sum(row["text"] != bare.get(row["prompt"]) for row in mine)
            mean = sum(row["share"] for row in mine) / max(len(mine), 1)
            told = "" if good is None else _shown(good, len(mine))
            rates = [_shown(hits, len(mine)) for hits in counts]
            table.append([arm, kind, str(len(mine)), *rates, told, _shown(changed, len(mine)), f"{mean:.2f}"])
    return table


def _shown(hits: int, n: int) -> str:
    if not n:
        return ""
    rate = Estimate.of_rate(hits, n)
    return f"{100 * rate.value:.0f} ({100 * rate.low:.0f} to {100 * rate.high:.0f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--build", type=Path, default=Path("build/zoo-real"))
    options.add_argument("--target", default="finance")
    options.add_argument("--artifacts", type=Path, help="Folder with `inferaligner` and `alignbeam`; the member's own.")
    options.add_argument("--limit", type=int, default=40, help="Prompts of each kind.")
    options.add_argument("--arms", default=",,".join(ARMS), help="Some of the arms, with two commas between them.")
    options.add_argument("--table", action="store_true", help="Only the table of what is there.")
    given = options.parse_args()
    arms = given.arms.split(",,")
    file = given.build / f"guidance-{given.target}.jsonl"
    if given.table:
        rows = _lines(file)
    else:
        made = Arms(given.build, given.target, given.artifacts or given.build / given.target)
        torch.set_grad_enabled(False)
        rows = written(file, arms, given.limit, made.guard)
    columns = ["arm", "prompts", "n", "refused", "complied", "right", "changed", "mean share"]
    report("guidance", columns, figures(rows, arms))


if __name__ == "__main__":
    main()
