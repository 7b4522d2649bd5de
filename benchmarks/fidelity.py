"""How faithfully each projection carries a real anchor's distribution to another real model's vocabulary.

For each position of a text in the target's tokens the anchor reads the text so far in its own canonical tokens. Each
projection says which target token comes next, and so does the oracle. The columns: bits per byte of the text,
KL(oracle || projection) in nats per position, and the share of the mass that is misplaced (total variation).
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchorlm.tokens import ByteVocabulary, Encoded, Kind, Projection, Retokenizer, exact_projection
from benchmarks._report import report

MODELS = Path(os.environ.get("ANCHORLM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "models"
PROMPTS = {"stories260K": "<s>", "tinytalk-chat": "User: Tell me a short story.\nBot:"}
TEXTS = (
    " Once upon a time there was a little girl who liked to play in the park.",
    " I am sorry, I can't do that. It is not nice to hurt people.",
    " The dog was happy because he found a big red ball under the tree.",
    " Hello! How are you today? I'm fine, thank you for asking.",
    ' "Don\'t be afraid," said the man. "We will find your cat together."',
)
KINDS: tuple[Kind, ...] = ("first-token", "lookahead", "paper-drop", "paper-first", "paper-exact")
RESIDUAL = 0.02
"""Undecided mass at which the oracle stops."""
FLOOR = 1e-6
"""Share of a uniform distribution mixed into every projection, so that a zero costs a finite number of nats."""


class Model:
    """A causal model as a function from token sequences to next-token distributions."""

    def __init__(self, name: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        self.network = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
        self.vocabulary = ByteVocabulary.from_tokenizer(tokenizer)
        self.prompt = tuple(tokenizer.encode(PROMPTS[name], add_special_tokens=False))

    def after(self, start: tuple[int, ...]) -> Callable[[Sequence[tuple[int, ...]]], Tensor]:
        """The same, behind some tokens."""
        return lambda continuations: self.next_probs([start + ids for ids in continuations])

    @torch.inference_mode()
    def next_probs(self, continuations: Sequence[tuple[int, ...]]) -> Tensor:
        rows = [self.prompt + ids for ids in continuations]
        last = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(last.max()) + 1, dtype=torch.int64)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row)
        hidden = self.network.base_model(ids, use_cache=False).last_hidden_state
        logits: Tensor = self.network.lm_head(hidden[torch.arange(len(rows)), last])
        return logits.float().softmax(-1)


def projected(
    anchor: Model, projections: dict[Kind, Projection], encoded: Encoded, boundary: bool, written: tuple[int, ...]
) -> dict[str, Tensor]:
    """What each projection says of the next target token (V_target,)."""
    everything = encoded.ids + encoded.tail
    steps = anchor.next_probs([everything[:n] for n in range(len(encoded.ids), len(everything) + 1)])
    now = steps[-1:]
    candidates = projections["lookahead"].lookahead_candidates(now, written=written)
    further = anchor.next_probs([(*everything, i) for i in candidates[:, 1].tolist()]) if len(candidates) else None
    first = projections["first-token"]
    found: dict[str, Tensor] = {
        "first-token": first.project_pending(steps, encoded, written=written),
        "lookahead": projections["lookahead"].project_pending(steps, encoded, candidates, further, written=written),
        "first-token, tokens so far ignored": first.project_pending(steps, encoded, written=()),
        **{kind: projections[kind](now)[0] for kind in KINDS if kind.startswith("paper-")},
        "paper-drop, with our bytes": dropped(first, now),
        "first-token, pending bytes as they stand": first(now)[0],
        "first-token, pending bytes held back": held_back(anchor.vocabulary, first, steps[0], encoded),
    }
    as_is, held = list(found.values())[-2:]
    found["first-token, held back unless at a boundary"] = as_is if boundary else held
    return found


def dropped(projection: Projection, probs: Tensor) -> Tensor:
    """The paper's default on the bytes of the tokens, without what strings lose: the top 50, split tokens skipped."""
    mass, ids = probs[0].topk(50)
    kept = torch.zeros_like(probs)
    for value, index in zip(mass, ids.tolist(), strict=True):
        data = projection.anchor.token_bytes(index)
        if not data or len(projection.target.encode(data)) == 1:
            kept[0, index] = value
    return projection(kept / kept.sum())[0]


def held_back(vocabulary: ByteVocabulary, projection: Projection, probs: Tensor, encoded: Encoded) -> Tensor:
    """Only tokens that begin with the pending bytes and go beyond them, stripped of them."""
    if not encoded.pending:
        return projection(probs[None])[0]
    kept = Retokenizer(vocabulary).constrain(probs, encoded.pending)
    spread = torch.zeros(projection.target_size)
    for index in kept.nonzero().flatten().tolist():
        rest = vocabulary.token_bytes(index)[len(encoded.pending) :]
        spread[projection.target.encode(rest)[0]] += kept[index]
    return spread


def measure(anchor: Model, target: Model) -> tuple[list[list[Any]], str]:
    projections = {kind: Projection.build(anchor.vocabulary, target.vocabulary, kind) for kind in KINDS}
    retokenizer, reader = Retokenizer(anchor.vocabulary), Retokenizer(target.vocabulary)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    own_bits, size = 0.0, 0
    asked, undecided = [], []
    for text in TEXTS:
        data = text.encode()
        size += len(data)
        own = anchor.vocabulary.encode(data)
        rows = anchor.next_probs([tuple(own[:n]) for n in range(len(own))])
        own_bits -= float(rows[torch.arange(len(own)), torch.tensor(own)].log2().sum())
        written = b""
        whole = target.vocabulary.encode(data)
        for position, token in enumerate(whole):
            encoded = retokenizer.encode(written)
            tokens = reader.open_tokens(reader.encode(written), whole[:position])
            start = encoded.ids[: encoded.stable]
            oracle = asyncio.run(
                exact_projection(
                    anchor.after(start),
                    anchor.vocabulary,
                    target.vocabulary,
                    pending=written[encoded.stable_bytes :],
                    written=tokens,
                    residual=RESIDUAL,
                    max_forwards=2048,
                )
            )
            asked.append(oracle.forwards)
            undecided.append(oracle.residual)
            found = projected(anchor, projections, encoded, retokenizer.is_boundary(written), tokens)
            for name, q in {"exact": oracle.probs, **found}.items():
                score(scores[name], oracle.probs, q.double().nan_to_num(0), token, pending=bool(encoded.tail))
            written += target.vocabulary.token_bytes(token)
    table = [["the anchor itself", own_bits / size, None, None, None, None]]
    for name, values in scores.items():
        means = [fmean(values[key]) if values[key] else None for key in ("kl", "kl_whole", "kl_pending", "misplaced")]
        table.append([name, sum(values["bits"]) / size, *means])
    note = (
        f"{len(asked)} positions ({len(scores['exact']['kl_pending'])} with pending bytes), {size} bytes, "
        f"oracle: {fmean(asked):.0f} forwards a position, {fmean(undecided):.4f} undecided"
    )
    return table, note


def score(values: dict[str, list[float]], oracle: Tensor, q: Tensor, token: int, *, pending: bool) -> None:
    smooth = (1 - FLOOR) * q + FLOOR / len(q)
    kl = float(torch.xlogy(oracle, oracle).sum() - torch.xlogy(oracle, smooth).sum())
    values["kl"].append(kl)
    values["kl_pending" if pending else "kl_whole"].append(kl)
    values["misplaced"].append(float((oracle - q).abs().sum() / 2))
    values["bits"].append(-math.log2(float(smooth[token])))


def main() -> None:
    if not MODELS.is_dir():
        print(f"fidelity: skipped, no models at {MODELS}; set ANCHORLM_DATA")
        return
    columns = ("projection", "bits per byte", "KL, nats", "KL, nothing pending", "KL, bytes pending", "misplaced")
    models = {name: Model(name) for name in PROMPTS}
    for one, other in (tuple(models), tuple(models)[::-1]):
        begin = perf_counter()
        table, note = measure(models[one], models[other])
        report(f"fidelity {one} to {other}", columns, table)
        print(f"{note}; {perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
