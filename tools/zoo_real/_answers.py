"""Answers that a base gives itself, kept as they come: an interrupted run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from anchorlm.models import CausalModel

_log = logging.getLogger("zoo-real")


def greedy(model: CausalModel, prompts: Sequence[str], tokens: int, *, batch: int = 16) -> list[str]:
    """Greedy answers, padded on the left."""
    texts: list[str] = []
    rows = [model.encode([{"role": "user", "content": prompt}]) for prompt in prompts]
    pad = next(iter(model.stop_ids))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        with torch.inference_mode():
            written = model.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=sorted(model.stop_ids),
                pad_token_id=pad,
            )[:, width:]
        for row in written.tolist():
            stop = next((index for index, token in enumerate(row) if token in model.stop_ids), len(row))
            texts.append(model.vocabulary.decode(row[:stop]).decode("utf-8", errors="replace"))
    return texts


def answered(model: CausalModel, prompts: Sequence[str], file: Path, *, tokens: int = 48) -> dict[str, str]:
    """The base's answer to each prompt, out of the file or written now."""
    known: dict[str, str] = {}
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        known = {row["prompt"]: row["answer"] for row in rows}
    missing = [prompt for prompt in prompts if prompt not in known]
    file.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), 16):
        part = missing[start : start + 16]
        with file.open("a", encoding="utf-8") as out:
            for prompt, answer in zip(part, greedy(model, part, tokens), strict=True):
                known[prompt] = answer
                out.write(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False) + "\n")
        _log.info("answers: %d of %d", start + len(part), len(missing))
    return {prompt: known[prompt] for prompt in prompts}


def shortened(text: str, longest: int = 60) -> tuple[str, bool]:
    """An answer's first sentences, and whether they end like an answer: what is cut inside a sentence does not."""
    text = " ".join(text.split("\n\n")[0].split()).strip()
    if len(text) <= longest and text.endswith((".", "!", "?")):
        return text, True
    end = max(text.rfind(mark, 0, longest) for mark in (". ", "! ", "? "))
    return (text[: end + 1], True) if end > 20 else (text[:longest].rsplit(" ", 1)[0], False)
