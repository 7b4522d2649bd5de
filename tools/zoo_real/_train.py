"""LoRA on answers, in few steps: bfloat16, logits at the answers alone, the first tokens of an answer weigh more."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional

from anchorlm.models import CausalModel
from tools.zoo_real._packed import Row, beginning, hidden, pack

_log = logging.getLogger("zoo-real")


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and what is to be answered.

    Attributes:
        prompt: What the user says.
        answer: What is to be said.
        whole: Whether the answer ends there.
        refusal: Whether it is a refusal. None where that is not what is taught.
    """

    prompt: str
    answer: str
    whole: bool = True
    refusal: bool | None = None


Together = tuple[Example, ...]
"""Examples that are learned in one batch: what tells the sides of a pair apart is seen side by side."""


@dataclass(frozen=True, slots=True)
class Training:
    """How an adapter is trained.

    Attributes:
        steps: Batches.
        tokens: Of a batch, about, without what all prompts begin with.
        rate: The highest learning rate.
        rank: Of the LoRA, on every linear layer of the blocks above the lowest third, which needs no gradient then.
        first: Tokens of an answer that weigh more.
        weight: How much more.
        margin: Weight of the loss that asks of an answer's first token alone whether it begins a refusal.
        every: Steps from one checkpoint to the next.
        seed: Of the order of the examples and of the first weights.
        later: Whether an aligned member also learns the lessons that came after the shipped ones were made.
    """

    steps: int = 300
    tokens: int = 700
    rate: float = 1e-3
    rank: int = 8
    first: int = 4
    weight: float = 4.0
    margin: float = 1.0
    every: int = 60
    seed: int = 0
    later: bool = False


_LINES = 4
_DECLINED = 1.5
"""How much more a refusal's first token weighs in the margin: there are that many more answers."""
_OTHERS = 8192
"""Tokens that no answer holds but that compete with those that do: the whole vocabulary costs as much as the model."""


def train(
    model: CausalModel,
    examples: Sequence[Together],
    training: Training,
    folder: Path,
    measure: Callable[[CausalModel, int], float],
) -> CausalModel:
    """The model with an adapter. Goes on where it stopped.

    What is saved in `folder` is the adapter that was best so far, in half precision, and what a later run goes on from.

    Args:
        model: The base. Its weights stay as they are.
        examples: What to learn.
        training: How.
        folder: Of the adapter and of what a later run goes on from.
        measure: Called with the model and the step at every checkpoint. The higher, the better.
    """
    torch.manual_seed(training.seed)
    attention = model.model.config._attn_implementation
    model.model.set_attn_implementation("eager")  # twice as fast backward as the fused one, in lines as short as these
    count = model.text_config.num_hidden_layers
    config = LoraConfig(
        r=training.rank,
        lora_alpha=2 * training.rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(count // 3, count)),
        task_type="CAUSAL_LM",
    )
    lora = get_peft_model(model.model, config, autocast_adapter_dtype=False)
    learner = _Learner(lora, training, folder)
    batches = _batches(model, examples, training)
    outputs = _outputs(model, examples, training)
    began = perf_counter()
    for step in range(training.steps):
        rows = next(batches)
        if step < learner.step:
            continue
        loss = learner.learn(partial(_loss, lora, rows, outputs, training.margin))
        if learner.step % 5 == 0:
            _log.info("step %d of %d, loss %.3f, %.0f s", step + 1, training.steps, loss, perf_counter() - began)
        if learner.step % training.every == 0 or learner.step == training.steps:
            lora.eval()
            learner.keep(measure(model, learner.step), f"../{Path(model.name).name}")
    lora.eval()
    learner.best()
    model.model.set_attn_implementation(attention)
    return model


class _Learner:
    """The adapter's weights, which are learned in float32 and used in the model's own format."""

    def __init__(self, lora: Any, training: Training, folder: Path) -> None:
        self._lora = lora
        self._training = training
        self._folder = folder
        self._used = {name: each for name, each in lora.named_parameters() if each.requires_grad}
        self._exact = {name: each.detach().float().clone() for name, each in self._used.items()}
        self._optimizer = torch.optim.AdamW(list(self._exact.values()), lr=training.rate, weight_decay=0.0)
        self.step = 0
        self._score = -math.inf
        if self._state.is_file():
            saved = torch.load(self._state, weights_only=True)
            self._set(saved["adapter"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step, self._score = saved["step"], saved["score"]
            _log.info("going on at step %d", self.step)

    @property
    def _state(self) -> Path:
        return self._folder / "state.pt"

    def learn(self, loss: Callable[[], torch.Tensor]) -> float:
        """One step. The loss before it."""
        training = self._training
        warm = min(1.0, (self.step + 1) / (0.1 * training.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = training.rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / training.steps))
        self._lora.train()
        value = loss()
        value.backward()
        for name, each in self._exact.items():
            used = self._used[name]
            each.grad = None if used.grad is None else used.grad.float()
            used.grad = None
        torch.nn.utils.clip_grad_norm_(list(self._exact.values()), 1.0)
        self._optimizer.step()
        self._set(self._exact)
        self.step += 1
        return float(value.detach())

    def keep(self, score: float, base: str) -> None:
        """Saves what a later run goes on from, and the adapter if it is the best so far."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if score > self._score:
            self._score = score
            config = self._lora.peft_config["default"]
            config.base_model_name_or_path = base
            config.inference_mode = True
            config.target_modules = sorted(config.target_modules)  # a set is written in another order each time
            config.save_pretrained(str(self._folder))
            half = {name.replace(".default.", "."): each.half() for name, each in self._exact.items()}
            save_file(half, self._folder / "adapter_model.safetensors", metadata={"format": "pt"})
            torch.save(self._exact, self._folder / "best.pt")
        state = {
            "adapter": self._exact,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "score": self._score,
        }
        torch.save(state, self._state)

    def best(self) -> None:
        """Takes the weights of the best checkpoint."""
        self._set(torch.load(self._folder / "best.pt", weights_only=True))

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, each in values.items():
            self._exact[name].copy_(each)
            self._used[name].copy_(each)


@dataclass(frozen=True, slots=True)
class Lesson:
    """An example in tokens.

    Attributes:
        row: Prompt and answer.
        weights: Of each token of the answer.
        refusal: As `Example`.
    """

    row: Row
    weights: list[float]
    refusal: bool | None


def _batches(model: CausalModel, examples: Sequence[Together], training: Training) -> Iterator[list[Lesson]]:
    """Epoch after epoch in another order."""
    random = Random(training.seed)
    groups = [[_lesson(model, example, training) for example in together] for together in examples]
    shared = beginning([lesson.row for group in groups for lesson in group])
    batch: list[Lesson] = []
    size = 0
    while True:
        for group in random.sample(groups, len(groups)):
            own = sum(len(each.row.prompt) + len(each.row.answer) - shared for each in group)
            if batch and size + own > training.tokens:
                yield batch
                batch, size = [], 0
            batch, size = batch + group, size + own


def _lesson(model: CausalModel, example: Example, training: Training) -> Lesson:
    prompt = model.encode([{"role": "user", "content": example.prompt}])
    text = model.response_lead.decode() + example.answer
    answer = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if example.whole:
        answer.append(int(model.tokenizer.eos_token_id))
    weights = [training.weight if place < training.first else 1.0 for place in range(len(answer))]
    return Lesson(Row(prompt, answer), weights, example.refusal)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The tokens that compete, ascending, and the one that begins a refusal (its place among them)."""

    ids: torch.Tensor
    refusal: int


def _outputs(model: CausalModel, examples: Sequence[Together], training: Training) -> Outputs:
    lessons = [_lesson(model, example, training) for together in examples for example in together]
    said = {token for lesson in lessons for token in lesson.row.answer}
    first = [lesson.row.answer[0] for lesson in lessons if lesson.refusal]
    size = model.vocab_size
    ids = torch.tensor(sorted(said | set(Random(training.seed).sample(range(size), min(size, _OTHERS)))))
    refusal = max(set(first), key=first.count) if first else int(ids[0])
    return Outputs(ids, int(torch.searchsorted(ids, refusal)))


def _loss(lora: Any, lessons: Sequence[Lesson], outputs: Outputs, margin: float) -> torch.Tensor:
    """Weighted cross-entropy of the answers' tokens, and of whether their first one begins a refusal."""
    model = lora.get_base_model()
    packed = pack([lesson.row for lesson in lessons], _LINES)
    states = hidden(model, packed)
    sizes = [len(lesson.row.answer) for lesson in lessons]
    lines = torch.cat([packed.ends[at, 0].repeat(size) for at, size in enumerate(sizes)])
    places = torch.cat([packed.ends[at, 1] + torch.arange(size) for at, size in enumerate(sizes)])
    targets = torch.searchsorted(outputs.ids, torch.tensor([token for each in lessons for token in each.row.answer]))
    weights = torch.tensor([weight for each in lessons for weight in each.weights])
    head = model.get_output_embeddings().weight[outputs.ids]
    scores = torch.log_softmax((states[lines, places] @ head.T).float(), -1)
    loss = -(scores.gather(1, targets[:, None])[:, 0] * weights).sum() / weights.sum()
    asked = torch.tensor([at for at, each in enumerate(lessons) if each.refusal is not None], dtype=torch.long)
    if not margin or not len(asked):
        return loss
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)[asked]
    declines = scores[starts, outputs.refusal]
    odds = declines - torch.log1p(-declines.exp().clamp(max=1 - 1e-6))
    wanted = torch.tensor([float(bool(lessons[at].refusal)) for at in asked.tolist()])
    return loss + margin * functional.binary_cross_entropy_with_logits(odds, wanted, pos_weight=torch.tensor(_DECLINED))
