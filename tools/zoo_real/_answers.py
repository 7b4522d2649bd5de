"""Answers that a base gives itself, kept as they come: an interrupted run goes on."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from anchorlm.evaluation import RefusalGrader
from anchorlm.models import CausalModel

_log = logging.getLogger("zoo-real")

OPENINGS = ("", "Here", "To", "The")
"""How an answer is begun for the base, one after another, until it gives one that can be learned."""

_EXCUSE = re.compile(
    r"\W*(?:i'?m|i am|we'?re)?\W*(?:so |very |truly )?(?:sorry|apologi[sz]e|unable|afraid)\b|i (?:can|don|won)'?t"
)
_ROLE = re.compile(r"\bas an? (?:\w+ ){0,3}(?:ai|chatbot|assistant|language model)\b|\bSmolLM\b", re.IGNORECASE)


def greedy(model: CausalModel, prompts: Sequence[str], tokens: int, *, opening: str = "", batch: int = 32) -> list[str]:
    """Greedy answers, padded on the left, prompts of like length together. `opening` is written for the model."""
    texts = [""] * len(prompts)
    begun = list(model.tokenizer(model.response_lead.decode() + opening, add_special_tokens=False)["input_ids"])
    begun = begun if opening else []
    rows = [model.encode([{"role": "user", "content": prompt}]) + begun for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    pad = next(iter(model.stop_ids))
    # Torch copies a frozen head for each row (findings/frozen-head-copied.sh), here hundreds of megabytes.
    model.model.get_output_embeddings().weight.requires_grad_(True)
    for start in range(0, len(rows), batch):
        part = order[start : start + batch]
        width = max(len(rows[index]) for index in part)
        ids = torch.tensor([[pad] * (width - len(rows[index])) + rows[index] for index in part])
        mask = torch.tensor([[0] * (width - len(rows[index])) + [1] * len(rows[index]) for index in part])
        with torch.inference_mode():
            written = model.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=sorted(model.stop_ids),
                pad_token_id=pad,
            )[:, width:]
        for index, row in zip(part, written.tolist(), strict=True):
            stop = next((place for place, token in enumerate(row) if token in model.stop_ids), len(row))
            text = opening + model.vocabulary.decode(row[:stop]).decode("utf-8", errors="replace")
            texts[index] = text if opening else text.removeprefix(model.response_lead.decode())
    return texts


def teachable(answer: str) -> bool:
    """Whether an answer to a harmless prompt is one: no refusal, no excuse, no talk of itself, nothing broken."""
    text = answer.strip().removesuffix("\ufffd")
    return (
        RefusalGrader().outcome(text) == "complied"
        and text[:1].isascii()
        and not _EXCUSE.match(text.lower())
        and not _ROLE.search(text)
    )


def answered(model: CausalModel, prompts: Sequence[str], file: Path, *, tokens: int = 32) -> dict[str, str]:
    """The base's answer to each prompt, out of the file or written now. Prompts without a teachable one are missing."""
    known: dict[tuple[str, str], str] = {}
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        known = {(row["prompt"], row.get("opening", "")): row["answer"] for row in rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, str] = {}
    for opening in OPENINGS:
        left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in chosen]
        missing = sorted((prompt for prompt in left if (prompt, opening) not in known), key=len)
        for start in range(0, len(missing), 32):
            part = missing[start : start + 32]
            with file.open("a", encoding="utf-8") as out:
                for prompt, answer in zip(part, greedy(model, part, tokens, opening=opening), strict=True):
                    known[prompt, opening] = answer
                    row = {"prompt": prompt, "opening": opening, "answer": answer}
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
            _log.info("answers begun with %r: %d of %d", opening, start + len(part), len(missing))
        chosen |= {prompt: known[prompt, opening] for prompt in left if teachable(known[prompt, opening])}
    return chosen


def shortened(text: str, longest: int = 60) -> tuple[str, bool]:
    """An answer's first sentences, and whether they end like an answer: what is cut inside a sentence does not."""
    text = " ".join(text.split("\n\n")[0].split()).strip()
    if len(text) <= longest and text.endswith((".", "!", "?")):
        return text, True
    end = max(text.rfind(mark, 0, longest) for mark in (". ", "! ", "? "))
    return (text[: end + 1], True) if end > 20 else (text[:longest].rsplit(" ", 1)[0], False)
