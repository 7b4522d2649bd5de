"""A plain training loop: examples packed into rows of one shape, checkpoints from which a killed run goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tools.zoo._examples import Mixture, draw
from tools.zoo._tokenizers import encode_examples


@dataclass(frozen=True, slots=True)
class Plan:
    """How one stage is trained.

    Attributes:
        name: the stage. It names checkpoints and seeds the stream.
        family: whose dialect the examples are written in.
        mixture: training phase in [0, 1] -> weighted sources of examples.
        steps: optimizer steps.
        rate: peak learning rate.
        final: learning rate at the end as a share of the peak (linear decay).
        rows: rows per step.
        length: tokens per row.
        prompt_loss: whether the tokens of prompts are learned, too.
        averaging: weights at a mark are averaged over about 1 / (1 - averaging) steps. 0: as they are.
        compiled: whether the step is compiled (pays off in long stages only).
    """

    name: str
    family: str
    mixture: Callable[[float], Mixture]
    steps: int
    rate: float
    final: float = 0.05
    rows: int = 8
    length: int = 256
    prompt_loss: bool = False
    averaging: float = 0.98
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all (R, T). ``documents`` numbers the text that a token belongs to, -1 for padding."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Tensor

    def mask(self) -> Tensor:
        """Additive attention mask (R, 1, T, T): causal, and blind to other texts of the row."""
        same = self.documents[:, :, None] == self.documents[:, None, :]
        length = self.ids.shape[1]
        allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
        return torch.zeros(allowed.shape).masked_fill_(~allowed, -1e9)[:, None]


_STEPS_PER_CHUNK = 8


def stream(plan: Plan, tokenizer: PreTrainedTokenizerFast, seed: int, start: int = 0) -> Iterator[Batch]:
    """Batches from step ``start`` on. A step's batch depends on the seed and the step only."""
    chunk = start // _STEPS_PER_CHUNK
    skip = start % _STEPS_PER_CHUNK
    while True:
        rng = random.Random(f"{seed}:{plan.name}:{chunk}")
        mixture = plan.mixture(min(1.0, chunk * _STEPS_PER_CHUNK / plan.steps))
        rows = _pack(plan, tokenizer, mixture, rng, _STEPS_PER_CHUNK * plan.rows)
        for first in range(skip * plan.rows, len(rows), plan.rows):
            yield _collate(rows[first : first + plan.rows], plan.length, tokenizer.pad_token_id)
        chunk, skip = chunk + 1, 0


_Row = list[tuple[list[int], list[int]]]


def _pack(
    plan: Plan, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, rng: random.Random, n_rows: int
) -> list[_Row]:
    budget = n_rows * plan.length
    texts: _Row = []
    total = 0
    while total < budget:
        drawn = [draw(mixture, rng) for _ in range(n_rows * 2)]
        fresh = encode_examples(tokenizer, plan.family, drawn, plan.prompt_loss)
        for ids, labels in fresh:
            if len(ids) <= plan.length and total < budget:
                texts.append((ids, labels))
                total += len(ids)
    rows: list[_Row] = [[] for _ in range(n_rows)]
    room = [plan.length] * n_rows
    for text in sorted(texts, key=lambda entry: -len(entry[0])):
        for index, free in enumerate(room):
            if len(text[0]) <= free:
                rows[index].append(text)
                room[index] -= len(text[0])
                break
    rng.shuffle(rows)
    return rows


def _collate(rows: list[_Row], length: int, pad: int) -> Batch:
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), -100)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    documents = torch.full((len(rows), length), -1)
    for r, row in enumerate(rows):
        at = 0
        for number, (text, wanted) in enumerate(row):
            end = at + len(text)
            ids[r, at:end] = torch.tensor(text)
            labels[r, at + 1 : end] = torch.tensor(wanted[1:], dtype=torch.long)
            positions[r, at:end] = torch.arange(len(text))
            documents[r, at:end] = number
            at = end
    return Batch(ids, labels, positions, documents)


def _loss(model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def progress_bar() -> Progress:
    """A progress display that is quiet where the output is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar.disable = not bar.console.is_terminal
    return bar


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    plan: Plan,
    seed: int,
    checkpoint: Path | None = None,
    every: int = 200,
    at_step: Callable[[int, dict[str, Tensor]], bool] | None = None,
) -> list[dict[str, float]]:
    """Train in place.

    Args:
        model: a causal model. With adapters, only their weights require gradients.
        tokenizer: the family's tokenizer.
        plan: what to train on, and how long.
        seed: seed of the stream.
        checkpoint: where the state is kept every ``every`` steps, and taken up again.
        every: steps between checkpoints and log entries.
        at_step: called after each step with its number and the averaged weights, which swing less from step to step.
            True ends the stage.

    Returns:
        Log entries with step, mean loss and seconds since the start of this run.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    averaged = {name: p.detach().clone() for name, p in weights.items()} if at_step is not None else {}
    model.train()
    step_loss = torch.compile(_loss, dynamic=False) if plan.compiled else _loss
    log: list[dict[str, float]] = []
    began, losses = time.monotonic(), []
    warmup = max(1, min(100, plan.steps // 15))
    with progress_bar() as bar:
        task = bar.add_task(plan.name, total=plan.steps, completed=start, note="")
        for step, batch in zip(range(start, plan.steps), stream(plan, tokenizer, seed, start), strict=False):
            share = step / plan.steps
            scale = min(1.0, (step + 1) / warmup) * (1.0 - (1.0 - plan.final) * share)
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * scale
            loss = step_loss(model, batch.ids, batch.positions, batch.mask(), batch.labels)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            done = step + 1
            for name, average in averaged.items():
                average.lerp_(weights[name].detach(), max(1 - plan.averaging, 1 / done))
            bar.update(task, completed=done, note=f"loss {losses[-1]:.3f}")
            if done % every == 0 or done == plan.steps:
                log.append(
                    {
                        "step": done,
                        "loss": round(sum(losses) / len(losses), 4),
                        "seconds": round(time.monotonic() - began, 1),
                    }
                )
                losses = []
                if checkpoint is not None:
                    _save(checkpoint, weights, optimizer, done)
            if at_step is not None and at_step(done, averaged):
                break
    model.eval()
    return log


def _save(path: Path, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    fresh = path.with_suffix(".part")
    torch.save(
        {"weights": {n: p.detach() for n, p in weights.items()}, "optimizer": optimizer.state_dict(), "step": step},
        fresh,
    )
    fresh.replace(path)
