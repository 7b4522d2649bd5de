"""How much of each public set an aligned member refuses with its first token, on the halves that may be looked at."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from anchorlm.evaluation import halves
from anchorlm.records import wilson
from tools.zoo_real._align import first_token, looked_at
from tools.zoo_real._looks import declines
from tools.zoo_real._measure import sets
from tools.zoo_real.bases import member
from tools.zoo_real.data import DATASETS, prompts

_PUBLIC = ("HarmBench standard", "JailbreakBench", "XSTest unsafe", "XSTest safe")
_PUBLISHED = ("GCG", "JBC")


def first_tokens(name: str, build: Path) -> str:
    """A Markdown table. It generates nothing, so that it takes a minute."""
    model = member(name, build)
    token = first_token(model)
    lines = ["| refused by the first token | n | % |", "|---|---|---|"]
    for kind, asked in _kinds().items():
        hits = sum(first for _, first in declines(model, asked, token))
        low, high = wilson(hits, len(asked))
        share = f"{100 * hits / len(asked):.1f} ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"| {kind} | {len(asked)} | {share} |")
    return "\n".join(lines)


def _kinds() -> dict[str, list[str]]:
    public = sets()
    kinds = {kind: halves(public[kind].prompts)[0] for kind in _PUBLIC}
    kinds |= {kind: halves(_published(kind))[0] for kind in _PUBLISHED}
    kinds["a bank's words"] = [each for part in ("fit", "calibrate") for each in prompts("finance-harmful", part)]
    return kinds | {"plain": looked_at("calibrate")["plain"]}


def _published(kind: str) -> list[str]:
    """Jailbreak prompts, as they were found against another model."""
    [file] = (DATASETS / "jailbreakbench").glob(f"{kind}_*.json.gz")
    return [row["prompt"] for row in json.loads(gzip.decompress(file.read_bytes()))["jailbreaks"] if row["prompt"]]
