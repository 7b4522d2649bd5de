"""LoRA on answers, in few steps: bfloat16, logits at the answers alone, the first tokens of an answer weigh more."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional

from anchorlm.models import CausalModel

_log = logging.getLogger("zoo-real")


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and what is to be answered; `whole` says whether the answer ends there."""

    prompt: str
    answer: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Training:
    """How an adapter is trained.

    Attributes:
        steps: Batches.
        tokens: Of a batch, about.
        rate: The highest learning rate.
        rank: Of the LoRA, on every linear layer of the upper half of the blocks: what is below needs no gradient.
        first: Tokens of an answer that weigh more.
        weight: How much more.
        every: Steps from one checkpoint to the next.
        seed: Of the order of the examples and of the first weights.
    """

    steps: int = 30
    tokens: int = 400
    rate: float = 2e-3
    rank: int = 8
    first: int = 5
    weight: float = 5.0
    every: int = 15
    seed: int = 0


def train(
    model: CausalModel,
    examples: Sequence[Example],
    training: Training,
    folder: Path,
    measure: Callable[[CausalModel, int], None],
) -> CausalModel:
    """The model with an adapter, which is saved in `folder` whenever it has been measured; goes on where it stopped.

    Args:
        model: The base; its weights stay as they are.
        examples: What to learn.
        training: How.
        folder: Of the adapter and of what a later run goes on from.
        measure: Called with the model and the step at every checkpoint.
    """
    torch.manual_seed(training.seed)
    config = LoraConfig(
        r=training.rank, lora_alpha=2 * training.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    lora = get_peft_model(model.model, config)
    weights = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=0.0)
    state, start = folder / "state.pt", 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        set_peft_model_state_dict(lora, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
        _log.info("going on at step %d", start)
    batches = _batches(model, examples, training)
    began = perf_counter()
    for step in range(training.steps):
        rows = next(batches)
        if step < start:
            continue
        lora.train()
        warm = min(1.0, (step + 1) / (0.1 * training.steps))
        for group in optimizer.param_groups:
            group["lr"] = training.rate * warm * 0.5 * (1 + math.cos(math.pi * step / training.steps))
        loss = _loss(lora, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 5 == 0:
            _log.info(
                "step %d of %d, loss %.3f, %.0f s",
                step + 1,
                training.steps,
                float(loss.detach()),
                perf_counter() - began,
            )
        if (step + 1) % training.every == 0 or step + 1 == training.steps:
            lora.eval()
            folder.mkdir(parents=True, exist_ok=True)
            kept = {
                "adapter": get_peft_model_state_dict(lora, save_embedding_layers=False),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(kept, state)
            lora.peft_config["default"].base_model_name_or_path = f"../{Path(model.name).name}"
            lora.save_pretrained(str(folder), save_embedding_layers=False)
            measure(model, step + 1)
    lora.eval()
    return model


Row = tuple[list[int], list[float]]
"""Token ids, and the weight of each as a target; 0 in the prompt."""


def _batches(model: CausalModel, examples: Sequence[Example], training: Training) -> Iterator[list[Row]]:
    """Epoch after epoch in another order, rows of like length together."""
    random = Random(training.seed)
    rows = [_row(model, example, training) for example in examples]
    while True:
        order = sorted(rows, key=lambda row: len(row[0]) + random.uniform(-8, 8))
        batches: list[list[Row]] = [[]]
        for row in order:
            if batches[-1] and (len(batches[-1]) + 1) * len(row[0]) > training.tokens:
                batches.append([])
            batches[-1].append(row)
        random.shuffle(batches)
        yield from batches


def _row(model: CausalModel, example: Example, training: Training) -> Row:
    prompt = model.encode([{"role": "user", "content": example.prompt}])
    text = model.response_lead.decode() + example.answer
    answer = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if example.whole:
        answer.append(int(model.tokenizer.eos_token_id))
    early = [training.weight if place < training.first else 1.0 for place in range(len(answer))]
    return prompt + answer, [0.0] * len(prompt) + early


def _loss(lora: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Weighted cross-entropy of the answers' tokens; the head reads their positions alone."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    weights = torch.tensor([early + [0.0] * (width - len(early)) for _, early in rows])
    model = lora.get_base_model()
    hidden = model.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    at = weights[:, 1:] > 0
    logits = model.get_output_embeddings()(hidden[at]).float()
    each = functional.cross_entropy(logits, ids[:, 1:][at], reduction="none")
    weight = weights[:, 1:][at]
    return (each * weight).sum() / weight.sum()
