"""AlignBeam over an endpoint and on the same weights here: how many answers are equal, and what made the others differ.

Without --endpoint a llama-server runs in this process, on SmolLM2 in float32 (wanted: xllamacpp, `make real`). With it,
serve the weights of --target in float32 there: `--endpoint http://127.0.0.1:8000/v1 --target FOLDER --name vllm`.
A run that was interrupted goes on. Each difference is explained:

- cut: tokens were as close in the mixture as what the server left unnamed allows.
- numerics: tokens were closer than two ways to compute the same numbers in float32 are.
- unexplained: neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from math import log, log1p
from pathlib import Path
from time import perf_counter
from typing import Any

from anchorlm.engine import LocalEngine, runtime
from anchorlm.evaluation import EnglishGrader, Estimate, OwnPrompts, Paired, own_prompts
from anchorlm.guard import Guard
from anchorlm.models import BASES, CausalModel, located
from anchorlm.team import EngineSettings, start_judge
from anchorlm.tokens import token_text
from benchmarks._report import FOLDER, report

MIXED, CANDIDATES, NAMED, MAX_HARM = 6, 3, 10, 0.45
CLOSE = 1e-3
"""What two engines may differ by in a logit, and so in a share of a probability, where both compute in float32."""
ROUNDED = 1e-4
"""To which the trace rounds probabilities."""
SETS: tuple[OwnPrompts, ...] = ("harmful", "look-alike", "plain", "tasks")

Row = dict[str, Any]


def in_floats(source: Path, place: Path) -> Path:
    """A GGUF file with every weight in float32, so that no server computes with quantized numbers."""
    import gguf
    from gguf.quants import dequantize

    if place.is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    reader, part = gguf.GGUFReader(source), place.with_suffix(".part")
    fields = {name: one for name, one in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(part, fields.pop("general.architecture").contents())
    fields.pop("general.file_type", None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, one in fields.items():
        nested = one.types[-1] if one.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, one.contents(), one.types[0], sub_type=nested)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.replace(place)


def serve(file: Path, threads: int) -> tuple[str, Any]:
    """The address of a llama-server on a file, which computes in float32. And the server, which ends with it.

    Its flash attention would round to half precision, whatever weights and cache are.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 2048, 1, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    running = xllamacpp.Server(params)
    return f"{running.listening_address}/v1", running


def asked(count: int) -> list[tuple[str, str, str]]:
    """Id, kind and text of prompts of the library's own, of each kind in turn: whatever is done is a sample of all."""
    sets = [own_prompts(name, None) for name in SETS]
    turns = [case for group in zip(*sets, strict=False) for case in group]
    return [(case.id, case.kind, str(case.messages[-1]["content"])) for case in turns[:count]]


class Side:
    """One of the two ways to answer. What was answered is kept in a file.

    Args:
        guard: Answers.
        file: Keeps the answers.
    """

    def __init__(self, guard: Guard, file: Path) -> None:
        self.guard = guard
        self._file = file
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        self._rows: dict[str, Row] = {row["id"]: row for row in map(_whole, lines) if row}

    def answer(self, id: str, prompt: str) -> Row:
        """The answer as a user gets it."""
        return self._kept(id, prompt, {})

    def whole(self, id: str, prompt: str) -> Row:
        """The same with every candidate written, which shows what else could have been chosen."""
        return self._kept(f"{id}, all", prompt, {"candidates_written": "all"})

    def _kept(self, id: str, prompt: str, knobs: Row) -> Row:
        if id not in self._rows:
            start = perf_counter()
            response = self.guard.chat([{"role": "user", "content": prompt}], knobs=knobs)
            told = {one.kind: one.data for one in response.trace if one.kind != "mix"}
            if response.failed:
                raise SystemExit(f"{id}: {told['fail_closed']['why']}")
            row = {
                "id": id,
                "text": response.text,
                "candidates": told["candidates"]["candidates"],
                "steps": {one.data["candidate"]: one.data["steps"] for one in response.trace if one.kind == "mix"},
                "seconds": perf_counter() - start,
            }
            line = json.dumps(row)
            with self._file.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
            self._rows[id] = json.loads(line)
        return self._rows[id]


def _whole(line: str) -> Row | None:
    """A line, unless an interrupt cut it short."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


class Explainer:
    """Says what made two answers to one prompt differ.

    Args:
        target: The target here.
    """

    def __init__(self, target: LocalEngine) -> None:
        self._target = target

    def why(self, prompt: str, here: Row, far: Row) -> tuple[str, str]:
        """The reason, and how close the matter was. Of answers with every candidate written (`Side.whole`)."""
        if here["text"] == far["text"]:
            return "unexplained", "equal with every candidate written"
        own, other = (_texts(row) for row in (here, far))
        if far["text"] in other and far["text"] not in own:
            place = other.index(far["text"])
            return self._written(prompt, here, far, range(len(own)), [place])
        if here["text"] in own and here["text"] not in other:
            place = own.index(here["text"])
            return self._written(prompt, here, far, [place], range(len(other)))
        return self._ordered(here, far)

    def _written(self, prompt: str, here: Row, far: Row, own: Sequence[int], other: Sequence[int]) -> tuple[str, str]:
        """Why a candidate was written on one side only: where it parts from the one most like it on the other side."""
        encode = self._target.model.vocabulary.encode
        ours, theirs = ([encode(text.encode()) for text in _texts(row)] for row in (here, far))
        pairs = [(i, j) for i in own for j in other]
        place, at = max(pairs, key=lambda pair: _common(ours[pair[0]], theirs[pair[1]]))
        shared = _common(ours[place], theirs[at])
        steps, told = here["steps"][str(place)], far["steps"][str(at)]
        if shared >= len(steps):
            gap = runtime().run(self._gap(prompt, ours[place], theirs[at], shared))
            return _reason(gap, 0.0, CLOSE), f"token {shared + 1}, of the target alone: led by {gap:.4f}"
        lost, won = self._next(ours[place], shared), self._next(theirs[at], shared)
        if not shared:  # another token was among the first
            firsts, others = ({self._next(one, 0) for one in side} for side in (ours, theirs))
            lost, won = _parted(steps[0]["mixture"], firsts - others, others - firsts)
        return _led(shared, dict(steps[shared]["mixture"]), lost, won, _unnamed(told, shared))

    def _next(self, tokens: Sequence[int], place: int) -> str:
        """A token as the trace names it. The end of a turn is one."""
        model = self._target.model
        token = tokens[place] if place < len(tokens) else min(model.stop_ids)
        return token_text(model.vocabulary, token)

    async def _gap(self, prompt: str, ours: Sequence[int], theirs: Sequence[int], shared: int) -> float:
        """By how much, in logits, the target prefers its own next token to the other's. The end of a turn is one."""
        model = self._target.model
        ids = [*model.encode([{"role": "user", "content": prompt}]), *ours[:shared]]
        async with self._target.open(ids) as row:
            logits = await row.logits()
        stop = float(max(logits[index] for index in model.stop_ids))
        own, other = (float(logits[one[shared]]) if shared < len(one) else stop for one in (ours, theirs))
        return abs(own - other)

    def _ordered(self, here: Row, far: Row) -> tuple[str, str]:
        """Why another one of the same candidates was chosen: its likelihood is known but for what was not named."""
        own, other = (_texts(row) for row in (here, far))
        chosen = [text for text in (here["text"], far["text"]) if text in own and text in other]
        if len(chosen) < 2:
            return "unexplained", "the same candidates, of which one side gave none"
        scores = [float(here["candidates"][own.index(text)]["log_probability"]) for text in chosen]
        gap, slack = abs(scores[0] - scores[1]), 0.0
        for text in chosen:
            steps, told = here["steps"][str(own.index(text))], far["steps"][str(other.index(text))]
            for place, step in enumerate(steps):
                least = step["mixture"][0 if place else CANDIDATES - 1][1]
                slack += log1p(_unnamed(told, place) / max(least, ROUNDED))
        how = f"the same candidates, led by {gap:.4f} in log-likelihood, cut up to {slack:.4f}"
        return _reason(gap, slack, len(here["steps"]["0"]) * CLOSE), how


def _texts(row: Row) -> list[str]:
    return [one["text"] for one in row["candidates"]]


def _unnamed(steps: Sequence[Row], place: int) -> float:
    return float(steps[min(place, len(steps) - 1)].get("unnamed", 0.0))


def _parted(mixture: Sequence[tuple[str, float]], lost: set[str], won: set[str]) -> tuple[str, str]:
    """The likeliest of the first tokens that only this side has, and the least likely of the other side's."""
    shares = dict(mixture)
    return (
        max(lost, key=lambda text: shares.get(text, 0.0), default=mixture[0][0]),
        min(won, key=lambda text: shares.get(text, 0.0), default=""),
    )


def _led(place: int, shares: dict[str, float], lost: str, won: str, rest: float) -> tuple[str, str]:
    """Whether what was not named may have turned two tokens round. One that the trace does not show counts as 0."""
    own, other = shares.get(lost, 0.0), shares.get(won, 0.0)
    further = f", {log(own / other):.4f} in log-probability" if own and other else ""
    shown = f"token {place + 1}: {lost!r} led {won!r} by {own - other:.4f}{further}, unnamed {rest:.4f}"
    return _reason(own - other, 2 * rest, CLOSE * own + ROUNDED), shown


def _reason(lead: float, cut: float, close: float) -> str:
    if lead <= cut and cut > close:
        return "cut"
    return "numerics" if lead <= close else "unexplained"


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def sides(given: argparse.Namespace, folder: Path, target: str, url: str) -> tuple[Side, Side]:
    """The guard here and the one over the endpoint. Anchor and judge are the same."""
    knobs: dict[str, Any] = {
        "mixed_tokens": MIXED, "candidates": CANDIDATES, "max_harm": MAX_HARM, "gate": "always",
        "trace_top": NAMED, "generation": {"max_new_tokens": given.tokens}, "on_error": "refuse",
    }  # fmt: skip
    told = {"target": target, "anchor": given.anchor, "dtype": "float32", "judge": given.judge, **knobs}
    key = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    anchor = LocalEngine(CausalModel.from_pretrained(given.anchor, dtype="float32"))
    judge = start_judge({"kind": "classifier", "model": given.judge}, EngineSettings(), [])
    source = {"endpoint": url, "tokenizer": given.tokenizer or target, "top_logprobs": given.top}
    here, far = (
        Guard(one, "alignbeam", anchor=anchor, judge=judge, **knobs)
        for one in (LocalEngine(CausalModel.from_pretrained(target)), source)
    )
    print(f"{given.name}: {far.defense.target.told}")  # type: ignore[attr-defined]
    return Side(here, folder / f"here-{key}.jsonl"), Side(far, folder / f"{given.name}-{key}-top{given.top}.jsonl")


def changed(name: str, pairs: Sequence[tuple[bool, bool]]) -> list[object]:
    """A rate here and there, and the paired interval of what changed, in points."""
    paired = Paired.of(list(pairs)).difference
    found = "{} here, {} there".format(*(sum(pair[index] for pair in pairs) for index in (0, 1)))
    return [name, found, f"of the change: {100 * paired.low:.1f} to {100 * paired.high:.1f}"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--endpoint", help="Default: a llama-server in this process.")
    options.add_argument("--target", help="Folder or GGUF file of what is served; default: SmolLM2 in float32.")
    options.add_argument("--tokenizer", help="Default: the target's.")
    options.add_argument("--anchor", default="real-anchor")
    options.add_argument("--judge", default="real-judge")
    options.add_argument("--name", default="llama-server")
    options.add_argument("--prompts", type=int, default=100)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--top", type=int, default=200)
    options.add_argument("--threads", type=int, default=1, help="Of llama.cpp, which spins where cores are busy.")
    given = options.parse_args()
    folder = FOLDER / "endpoint"
    folder.mkdir(parents=True, exist_ok=True)
    base = BASES["real-smollm2"]
    target = located(given.target) if given.target else str(in_floats(base.path(), folder / "smollm2-f32.gguf"))
    url, running = (given.endpoint, None) if given.endpoint else serve(Path(target), given.threads)
    here, far = sides(given, folder, target, url)
    measured(given, here, far)
    del running


def measured(given: argparse.Namespace, here: Side, far: Side) -> None:
    explainer, word = Explainer(here.guard.defense.target), EnglishGrader().word  # type: ignore[arg-type]
    reasons: Counter[str] = Counter()
    refused, complied, seconds = [], [], []
    prompts = asked(given.prompts)
    for number, (id, _, prompt) in enumerate(prompts, 1):
        own, other = here.answer(id, prompt), far.answer(id, prompt)
        reason, how = "equal", ""
        if own["text"] != other["text"]:
            reason, how = explainer.why(prompt, here.whole(id, prompt), far.whole(id, prompt))
        reasons[reason] += 1
        words = [word(row["text"])[0] for row in (own, other)]
        refused.append((words[0] == "refused", words[1] == "refused"))
        complied.append((words[0] == "complied", words[1] == "complied"))
        seconds.append((own["seconds"], other["seconds"]))
        print(f"{number} of {len(prompts)}, {id}: {reason}{f' ({how})' if how else ''}", flush=True)
    rate = Estimate.of_rate(reasons["equal"], len(prompts))
    rows: list[list[object]] = [
        ["equal answers", f"{reasons['equal']} of {len(prompts)}", f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"],
        *([f"differ: {name}", reasons[name], ""] for name in ("cut", "numerics", "unexplained")),
        changed("refused", refused),
        changed("complied", complied),
        ["seconds an answer, here", statistics.median(pair[0] for pair in seconds), ""],
        ["seconds an answer, there", statistics.median(pair[1] for pair in seconds), ""],
    ]
    report(f"endpoint {given.name}", ["what", "found", "95 % interval, %"], rows)


if __name__ == "__main__":
    main()
