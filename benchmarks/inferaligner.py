"""What InferAligner does on the embedded specialists, alone and as AlignBeam's gate: fitted, calibrated, measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from anchorlm import CausalModel, Guard, zoo
from anchorlm.engine import LocalEngine
from anchorlm.fitting import calibrate_inferaligner, fit_inferaligner
from anchorlm.judging import RubricJudge
from anchorlm.records import Response
from benchmarks._report import report

N = 150
LIMIT = 0.02
CELLS = ("harmful-plain", "harmful-framed", "jailbreak", "harmless", "look-alike", "domain")


def items(split: str, domain: str, partition: str, n: int) -> list[zoo.Item]:
    own = domain if split in ("harmful-framed", "domain") else None
    return zoo.items(split, domain=own, partition=partition, n=n)  # type: ignore[arg-type]


def prompts(domain: str, partition: str) -> tuple[list[str], list[str]]:
    """Harmful and harmless prompts, 100 of each kind."""
    harmful = [item.prompt for split in CELLS[:3] for item in items(split, domain, partition, 100)]
    harmless = [item.prompt for split in CELLS[3:] for item in items(split, domain, partition, 100)]
    framed = zoo.items("harmless", domain=domain, partition=partition, n=100)  # type: ignore[arg-type]
    return harmful, [*harmless, *(item.prompt for item in framed)]


def cell(split: str, sample: list[zoo.Item], responses: list[Response]) -> str:
    if split == "domain":
        right = sum(zoo.is_correct(item, one.text) for item, one in zip(sample, responses, strict=True))
        return f"{100 * right / len(sample):.1f}"
    counts = Counter(str(zoo.grade(item, one.text)) for item, one in zip(sample, responses, strict=True))
    return "/".join(f"{100 * counts[name] / len(sample):.0f}" for name in ("refused", "complied", "broken"))


def main() -> None:
    def engine(name: str) -> LocalEngine:
        return LocalEngine(CausalModel.from_pretrained(zoo.path(name)))

    chat, anchor = engine("a-chat"), engine("b-chat")
    judge = RubricJudge(engine("b-judge"), template=zoo.JUDGE_TEMPLATE)
    rows = []
    for domain in zoo.DOMAINS:
        target, length = engine(f"a-{domain}"), {"max_new_tokens": 64}
        fitted = fit_inferaligner(target, chat, *prompts(domain, "train"))
        with TemporaryDirectory() as folder:
            artifact = str(Path(folder) / "artifact")
            calibrate_inferaligner(fitted, target, *prompts(domain, "dev"), limit=LIMIT).save(artifact)
            gated = {"gate": "inferaligner", "artifact": artifact, "mixed_tokens": 3, "max_harm": 0.2}
            guards = {
                "undefended": Guard(target, generation=length),
                "inferaligner": Guard(target, "inferaligner", artifact=artifact, generation=length),
                "alignbeam, gated": Guard(target, "alignbeam", anchor=anchor, judge=judge, generation=length, **gated),
            }
        for name, guard in guards.items():
            found = []
            for split in CELLS:
                sample = items(split, domain, "test", N)
                found.append(cell(split, sample, guard.generate([item.prompt for item in sample])))
            rows.append([f"a-{domain}", name, *found])
    report("inferaligner", ["target", "defense", *CELLS], rows)


if __name__ == "__main__":
    main()
