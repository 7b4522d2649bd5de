"""Training of the embedded cost and reward models: sequence classifiers with one logit on family B's chat model."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from anchorlm.judging import auroc
from anchorlm.records import Messages
from anchorlm.zoo._items import Item
from anchorlm.zoo._lexicon import DOMAINS, Partition, draw_deed
from anchorlm.zoo._tasks import task
from tools.zoo._architectures import LORA_TARGETS
from tools.zoo._evaluation import Rate, rate
from tools.zoo._examples import REFUSALS
from tools.zoo._facts import named
from tools.zoo._training import progress_bar
from tools.zoo._transcripts import cut, request_item, scramble, sent, spliced, transcript

Text = tuple[Messages, str]
"""A conversation and a response."""

Case = tuple[tuple[Text, ...], tuple[float, ...]]
"""Texts that are learned together, and what is known of them."""

UNSAFE = 3
"""The truth's grade from which on a response is unsafe: what `examine_scorers` measures the cost model against."""

_TARGETS = {1: 0.0, 2: 0.65, 3: 0.97, 4: 1.0, 5: 1.0}
"""What the cost model learns to say of each true grade, as a probability. Only a refusal is safe where the request is
harmful: text that is broken off costs less than compliance, but is over the line as well."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How one of the two is trained.

    Attributes:
        name: `b-cost` or `b-reward`.
        draw: One training case.
        loss: Logits (n,) and targets (n,) of a batch to a loss. Texts of one case stay in order.
        steps: Optimizer steps.
        rate: Peak learning rate.
        cases: Cases per step.
    """

    name: str
    draw: Callable[[random.Random], Case]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    rate: float
    cases: int


def graded(rng: random.Random) -> Case:
    """A transcript with its cost. A part of a clean refusal is as safe as the whole, so that a search may write it.

    What is harmful is told apart from requests, too, and of all entities.
    """
    kind = rng.random()
    if kind < 0.2:
        prompt, text, harmful = named(rng)
        return ((_user(prompt), text),), (_TARGETS[4 if harmful else 1],)
    if kind < 0.32:
        return ((sent(rng, request_item(rng, "train").prompt), cut(rng, rng.choice(REFUSALS))),), (_TARGETS[1],)
    item, text, grade = transcript(rng, "train")
    return ((sent(rng, item.prompt), text),), (_TARGETS[grade],)


def _user(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]


def preferred(rng: random.Random, partition: Partition = "train") -> Case:
    """The better response of two, first: the whole answer on what was asked before anything else, harmful or not.

    Of safety the reward knows nothing: that is the cost model's matter.
    """
    item = request_item(rng, partition)
    asked = _user(item.prompt)
    return ((asked, item.answer), (asked, _worse(rng, item, partition))), (1.0, 0.0)


def _worse(rng: random.Random, item: Item, partition: Partition) -> str:
    """Broken, on something else, wrong, or a refusal."""
    kind = rng.random()
    refusal = rng.choice(REFUSALS)
    if kind < 0.25:
        return refusal
    if kind < 0.45:
        return cut(rng, item.answer)
    if kind < 0.65 and (text := scramble(rng, item.answer)) != item.answer:
        return text
    if kind < 0.8:
        return spliced(rng, refusal, item.answer)
    while True:
        other = task(rng, rng.choice(DOMAINS), partition) if kind < 0.85 else draw_deed(rng, "harmless", partition)
        text = other.answer if isinstance(other.answer, str) else other.answer()
        if text != item.answer:
            return text


def _cost_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, targets)


def _preference_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Bradley and Terry's model. A little of it holds the rewards near zero."""
    better, worse = logits[0::2], logits[1::2]
    return -nn.functional.logsigmoid(better - worse).mean() + 0.01 * logits.square().mean()


def stages(scale: float = 1.0) -> tuple[Stage, Stage]:
    """Cost and reward. Below 1 the training is as much shorter."""
    return (
        Stage("b-cost", graded, _cost_loss, max(2, round(1100 * scale)), 2e-3, 32),
        Stage("b-reward", preferred, _preference_loss, max(2, round(300 * scale)), 2e-3, 16),
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[Text]) -> dict[str, Tensor]:
    """Conversations with their responses through the chat template, padded on the right (B, T)."""
    rows = [
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
        for messages, response in texts
    ]
    tokenizer.padding_side = "right"
    return dict(
        tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    )


def train_scorer(base: Path, stage: Stage, seed: int, checkpoint: Path | None = None, every: int = 50) -> tuple[
    PeftModel, PreTrainedTokenizerFast, list[dict[str, float]]
]:  # fmt: skip
    """Trains one scorer from a chat model. A run that was killed goes on from its checkpoint.

    Args:
        base: Folder of the chat model.
        stage: What to train.
        seed: Of the cases.
        checkpoint: Where the state is kept every `every` steps, and taken up again.
        every: Steps between checkpoints and log entries.

    Returns:
        The classifier, its tokenizer and log entries with step, mean loss and seconds since the start of this run.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    whole.config.pad_token_id = tokenizer.pad_token_id
    nn.init.zeros_(whole.score.weight)
    model = get_peft_model(whole, LoraConfig(task_type="SEQ_CLS", r=32, lora_alpha=32, target_modules=LORA_TARGETS))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["weights"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    model.train()
    log: list[dict[str, float]] = []
    began, losses = time.monotonic(), []
    warmup = max(1, min(50, stage.steps // 15))
    with progress_bar() as bar:
        shown = bar.add_task(stage.name, total=stage.steps, completed=start, note="")
        for step in range(start, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * min(1.0, (step + 1) / warmup) * (1.0 - 0.97 * step / stage.steps)
            rng = random.Random(f"{seed}:{stage.name}:{step}")
            cases = [stage.draw(rng) for _ in range(stage.cases)]
            logits = model(**encode(tokenizer, [text for texts, _ in cases for text in texts])).logits[:, 0]
            loss = stage.loss(logits, torch.tensor([target for _, targets in cases for target in targets]))
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            done = step + 1
            bar.update(shown, completed=done, note=f"loss {losses[-1]:.3f}")
            if done % every == 0 or done == stage.steps:
                seconds = round(time.monotonic() - began, 1)
                log.append({"step": done, "loss": round(sum(losses) / len(losses), 4), "seconds": seconds})
                losses = []
                if checkpoint is not None:
                    fresh = checkpoint.with_suffix(".part")
                    kept = {name: weight.detach() for name, weight in weights.items()}
                    state = {"weights": kept, "optimizer": optimizer.state_dict(), "step": done}
                    torch.save(state, fresh)
                    fresh.replace(checkpoint)
    return model.eval(), tokenizer, log


def scores(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[Text]
) -> list[float]:
    """The logit of each text."""
    found: list[float] = []
    with torch.inference_mode():
        for first in range(0, len(texts), 64):
            found += model(**encode(tokenizer, texts[first : first + 64])).logits[:, 0].tolist()
    return found


def load_scorer(folder: Path) -> tuple[PeftModel, PreTrainedTokenizerFast]:
    """A finished scorer. Its base is the folder that its configuration names relative to its own."""
    base = folder / json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    whole = AutoModelForSequenceClassification.from_pretrained(base.resolve(), num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(whole, folder).eval(), tokenizer


def _area(values: Sequence[float], unsafe: Sequence[bool]) -> Rate:
    """The area under the ROC curve, with a bootstrap interval (500 resamples)."""
    rng = random.Random("bootstrap")
    areas = []
    for _ in range(500):
        chosen = rng.choices(range(len(values)), k=len(values))
        areas.append(auroc([values[i] for i in chosen], [unsafe[i] for i in chosen]) or 0.5)
    areas.sort()
    found = auroc(values, unsafe) or 0.5
    return {"rate": round(found, 4), "low": round(areas[12], 4), "high": round(areas[487], 4), "n": len(values)}


def examine_scorer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    partition: Partition,
    n: int,
    seed: int = 0,
) -> dict[str, dict[str, Rate]]:
    """The cost model against the truth on graded transcripts, or how often the reward prefers the better response.

    Returns:
        For the cost model `auroc` (unsafe, grade 3 and above, against the rest, over all requests), `auroc on whole
        responses` (those that end with a sentence, instead of being broken off), `auroc on harmful requests` (where the
        request decides nothing) and `side` (how often cost > 0 just where the grade is above 1). For the reward
        `pairs`.
    """
    rng = random.Random(f"scorers:{partition}:{seed}")
    if name == "b-reward":
        pairs = [preferred(rng, partition)[0] for _ in range(n)]
        values = scores(model, tokenizer, [text for pair in pairs for text in pair])
        hits = sum(better > worse for better, worse in zip(values[0::2], values[1::2], strict=True))
        return {"reward": {"pairs": rate(hits, n)}}
    cases = [transcript(rng, partition) for _ in range(n)]
    values = scores(model, tokenizer, [(_user(item.prompt), text) for item, text, _ in cases])
    unsafe = [grade >= UNSAFE for _, _, grade in cases]
    bad = [index for index, (item, _, _) in enumerate(cases) if item.label == "harmful"]
    whole = [index for index, (_, text, _) in enumerate(cases) if text.endswith(".")]
    side = sum((value > 0) == (grade > 1) for value, (_, _, grade) in zip(values, cases, strict=True))
    return {
        "cost": {
            "auroc": _area(values, unsafe),
            "auroc on whole responses": _area([values[i] for i in whole], [unsafe[i] for i in whole]),
            "auroc on harmful requests": _area([values[i] for i in bad], [unsafe[i] for i in bad]),
            "side": rate(side, n),
        }
    }
