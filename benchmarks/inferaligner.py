"""What InferAligner does on the embedded specialists, alone and as AlignBeam's gate.

`python -m benchmarks.inferaligner` measures the artifacts that come with them on the sealed test, `--fit` fits them
anew, `--anchor b-chat` with vectors of the other family. `--overhead` only times. `--partition dev --n 20` is a try.
The second reader is b-chat.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anchorlm import CausalModel, Guard, zoo
from anchorlm.cli._embedded import ANCHOR, GATED, KNOBS, SAME_VOCABULARY
from anchorlm.defenses.inferaligner import calibrate_inferaligner, fit_inferaligner, save_artifact
from anchorlm.engine import LocalEngine
from anchorlm.judging import RubricJudge
from anchorlm.records import Artifact, Response, as_messages, wilson
from benchmarks._report import alternate, ratio, report
from tools.zoo._fit import CALIBRATED, FITTED, LIMITS, prompts

CELLS = ("harmful-plain", "harmful-framed", "jailbreak", "harmless", "look-alike", "domain")


def items(split: str, domain: str, partition: str, n: int) -> list[zoo.Item]:
    own = domain if split in ("harmful-framed", "domain") else None
    return zoo.items(split, domain=own, partition=partition, n=n)  # type: ignore[arg-type]


def cell(split: str, sample: list[zoo.Item], responses: list[Response]) -> str:
    if split == "domain":
        right = sum(zoo.is_correct(item, one.text) for item, one in zip(sample, responses, strict=True))
        return f"{100 * right / len(sample):.1f}"
    counts = Counter(str(zoo.grade(item, one.text)) for item, one in zip(sample, responses, strict=True))
    return "/".join(f"{100 * counts[name] / len(sample):.0f}" for name in ("refused", "complied", "broken"))


def opened(responses: Sequence[Response]) -> str:
    """On how many of the prompts the gate opened, percent with a 95 % interval."""
    hits, n = sum(bool(one.trace[0].data["open"]) for one in responses), len(responses)
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def overhead(
    plain: Guard, guard: Guard, both: Guard, beam: Guard, sample: Sequence[zoo.Item]
) -> list[tuple[str, float]]:
    """What gates cost over the undefended target on harmless prompts, 64 new tokens each, one prompt at a time."""
    texts = [as_messages(item.prompt) for item in sample]
    # The shift is next to nothing, so that the first four write the same text.
    runs = [
        lambda: [plain.chat(text) for text in texts],
        lambda: [guard.chat(text, knobs={"bias": -1e9}) for text in texts],
        lambda: [guard.chat(text, knobs={"bias": 1e9, "alpha": 1e-9, "answer": "steer"}) for text in texts],
        lambda: [both.chat(text, knobs={"bias": -1e9}) for text in texts],
        lambda: [beam.chat(text) for text in texts],
    ]
    bare, *others = alternate(5, *runs)
    names = ("closed", "open", "closed, both read", "alignbeam behind the gate, as it decides")
    return [(name, ratio(seconds, bare)) for name, seconds in zip(names, others, strict=True)]


def artifact(domain: str, anchor: str, reader: LocalEngine, anew: bool, folder: Path) -> Path:
    """The specialist's artifact: the one that comes with it, or one that is fitted now."""
    own = zoo.artifact(f"a-{domain}")
    if own is not None and anchor == SAME_VOCABULARY and not anew:
        return own
    target = engine(f"a-{domain}")
    fitted = fit_inferaligner(target, engine(anchor), *prompts(domain, "train", FITTED), reader=reader)
    validation = prompts(domain, "dev", CALIBRATED)
    limit = LIMITS[f"a-{domain}"]
    return save_artifact(calibrate_inferaligner(fitted, target, *validation, reader=reader, limit=limit), folder)


def engine(name: str) -> LocalEngine:
    return LocalEngine(CausalModel.from_pretrained(zoo.path(name)), prefix_tokens=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partition", choices=("dev", "test"), default="test")
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--fit", action="store_true", help="fit the artifacts anew")
    parser.add_argument(
        "--anchor", choices=(SAME_VOCABULARY, ANCHOR), default=SAME_VOCABULARY, help="b-chat: across families"
    )
    parser.add_argument("--only", default="", help="defenses whose name contains this")
    parser.add_argument("--overhead", action="store_true", help="only what gates cost")
    parser.add_argument("--domains", nargs="+", choices=zoo.DOMAINS, default=list(zoo.DOMAINS))
    options = parser.parse_args(arguments)
    guide = engine(ANCHOR)
    judge = RubricJudge(engine("b-judge"), template=zoo.JUDGE_TEMPLATE)
    rows, gates, costs = [], [], []
    for domain in options.domains:
        target, length = engine(f"a-{domain}"), {"max_new_tokens": 64}
        with TemporaryDirectory() as folder:
            place = artifact(domain, options.anchor, guide, options.fit, Path(folder) / "artifact")
            beam: dict[str, Any] = {"anchor": guide, "judge": judge, "artifact": str(place), "generation": length}
            beam |= {**KNOBS["alignbeam"], **GATED}
            seeing: dict[str, Any] = {"artifact": place, "anchor": guide, "generation": length}
            plain = Guard(target, generation=length)
            guard = Guard(target, "inferaligner", artifact=place, generation=length)
            read, both = (Guard(target, "inferaligner", reader=who, **seeing) for who in ("anchor", "both"))
            mixed = {
                "alignbeam, gated": Guard(target, "alignbeam", **beam | {"gate_reader": "target"}),
                "alignbeam gated, read by both": Guard(target, "alignbeam", **beam),
            }
            # Where the calibration chose the fixed refusal, what the vectors themselves would do is a row of its own.
            fixed = Artifact.load(place).settings["answer"] == "refuse"
            controls = {
                f"{vector} vectors": Guard(
                    target, "inferaligner", artifact=place, vector=vector, answer="steer", generation=length
                )
                for vector in (("anchor",) if fixed else ()) + ("own", "random")
            }
        harmless = items("harmless", domain, options.partition, 16)
        if not options.only:
            costs += [[f"a-{domain}", *row] for row in overhead(plain, guard, both, list(mixed.values())[-1], harmless)]
        if options.overhead:
            continue
        samples = {split: items(split, domain, options.partition, options.n) for split in CELLS}
        ours = {"inferaligner": guard, "inferaligner read by b-chat": read, "inferaligner read by both": both}
        guards = {"undefended": plain, **ours, **controls, **mixed}
        for name, one in guards.items():
            if options.only not in name:
                continue
            answers = {split: one.generate([item.prompt for item in sample]) for split, sample in samples.items()}
            rows.append([f"a-{domain}", name, *(cell(split, samples[split], answers[split]) for split in CELLS)])
            if name in ours:
                gates.append([f"a-{domain}", name, *map(opened, answers.values())])
    across = " across families" if options.anchor == ANCHOR else ""
    if rows:
        report(f"inferaligner{across}", ["target", "defense", *CELLS], rows)
    if gates:
        report(f"inferaligner gate{across}", ["target", "gate", *CELLS], gates)
    if costs:
        report(f"inferaligner overhead{across}", ["target", "gate", "over undefended"], costs)


if __name__ == "__main__":
    main()
