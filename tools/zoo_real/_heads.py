"""LoRA and a head on a base that reads a request with its answer: one number, learned at every word of the answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from anchorlm.models import ModelSettings, load_tokenizer
from anchorlm.models._adapters import without_notes
from anchorlm.models._gguf import load_weights
from tools.zoo_real._graded import Graded

_log = logging.getLogger("zoo-real")

_TEMPLATE = (
    "{{{{ bos_token }}}}{{% for message in messages %}}{{% if not loop.first %}}\n{{% endif %}}"
    "{{% if message['role'] == 'user' %}}{user}{{% elif message['role'] == 'assistant' %}}{assistant}"
    "{{% else %}}{system}{{% endif %}}: {{{{ message['content'] }}}}{{% endfor %}}"
)
"""Nothing follows an answer, so that its beginning reads like the beginning of any longer one."""

ROLES = ("Request", "Answer", "Rules")

_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Learning:
    """How a scorer is trained.

    Attributes:
        epochs: Passes over the examples.
        tokens: Of a batch, about, padding included.
        rate: The highest learning rate. It rises for a tenth of the steps and falls as a cosine does.
        rank: Of the LoRA.
        above: The first layer that learns. What lies below is computed once for all passes.
        longest: Tokens of a row. What is longer is left out.
        dense: What the words inside an answer weigh together, where its end weighs 1.
        most: Examples at most.
        every: Steps from one checkpoint to the next.
        seed: Of the order of the rows and of the first weights.
        start: The member whose adapter is trained on. None: a fresh one.
        roles: What stands before a turn of the user's, an answer and a system turn.
    """

    epochs: int = 1
    tokens: int = 800
    rate: float = 1e-3
    rank: int = 8
    above: int = 10
    longest: int = 80
    dense: float = 1.0
    most: int | None = None
    every: int = 100
    seed: int = 0
    start: str | None = None
    roles: tuple[str, str, str] = ROLES

    @property
    def template(self) -> str:
        """The chat template."""
        user, assistant, system = self.roles
        return _TEMPLATE.format(user=user, assistant=assistant, system=system)


@dataclass(frozen=True, slots=True)
class Row:
    """A text as tokens, with what is to be said at some of them.

    Attributes:
        ids: The tokens.
        targets: What the sigmoid of the head's number is to be, of the last `len(targets)` tokens.
        weights: What each of these counts.
    """

    ids: list[int]
    targets: list[float]
    weights: list[float]


def tokenizer_of(file: Path, learning: Learning) -> PreTrainedTokenizerBase:
    """A base's tokenizer with the template that a scorer reads."""
    settings = {"path": str(file), "chat_template": learning.template}
    return load_tokenizer(ModelSettings.parse(settings, where="a scorer"))


def row_of(tokenizer: PreTrainedTokenizerBase, example: Graded, aim: str, dense: float = 1.0) -> Row:
    """What is learned from an example.

    Args:
        tokenizer: Of the base.
        example: A graded answer.
        aim: `harm` or `worth`.
        dense: See `Learning`.
    """
    ids, start = encoded(tokenizer, example.prompt, example.answer)
    own = len(ids) - start
    if not own:
        return Row(ids, [getattr(example, aim)], [1.0])
    turn = len(encoded(tokenizer, example.prompt, example.answer[: example.onset])[0]) - start if example.onset else 0
    if aim == "harm":
        targets = [0.05 if place < turn else example.harm for place in range(own)]
    else:  # half an answer is worth less than the whole, and more than none
        targets = [example.worth * (0.5 + 0.5 * (place + 1) / own) for place in range(own)]
    weights = [dense / own] * own
    weights[-1] += 1.0
    return Row(ids, targets, weights)


def encoded(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], int]:
    """The tokens of a request with its answer, and how many of them stand before the answer."""
    asked = [{"role": "user", "content": prompt}]
    texts = [
        tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": said}], tokenize=False)
        for said in (answer, "")
    ]
    ids, before = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    shared = next(
        (at for at, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), min(len(ids), len(before))
    )
    return list(ids), shared


def learn(
    file: Path, rows: Sequence[Row], learning: Learning, folder: Path, measure: Callable[[Learner, int], None]
) -> None:
    """Trains an adapter with a head, saved in `folder` whenever it is measured. Goes on where it stopped.

    Args:
        file: The base's GGUF.
        rows: What to learn.
        learning: How.
        folder: Of the adapter and of what a later run goes on from.
        measure: Called with the model as it is, and the step.
    """
    learner = Learner(file, learning)
    if learning.start is not None:
        learner.begin(folder.with_name(learning.start))
    done = learner.resume(folder)
    rows = [row for row in rows if len(row.ids) <= learning.longest]
    batches = _batches(rows, learning)
    passes = [next(batches) for _ in range(learning.epochs)]
    steps = sum(map(len, passes))
    _log.info("%d rows, %d tokens, %d steps", len(rows), sum(len(row.ids) for row in rows), steps)
    began, mean = process_time(), 0.7
    for step, batch in enumerate((batch for each in passes for batch in each), 1):
        if step <= done:
            continue
        mean = 0.95 * mean + 0.05 * learner.step(batch, step / steps)
        if step % 10 == 0:
            _log.info("step %d of %d, loss %.3f, %.0f s of CPU", step, steps, mean, process_time() - began)
        if step % learning.every == 0 or step == steps:
            learner.save(folder, step)
            measure(learner, step)


class Learner:
    """A base with LoRA in its upper layers and a head of one number.

    Args:
        file: The base's GGUF.
        learning: How it is trained.
    """

    def __init__(self, file: Path, learning: Learning) -> None:
        torch.manual_seed(learning.seed)
        options = {"dtype": torch.bfloat16, "num_labels": 1, "attn_implementation": "eager"}
        with without_notes():
            model: Any = load_weights(file, AutoModelForSequenceClassification, options)[0]
        nn.init.zeros_(model.score.weight)
        self.tokenizer = tokenizer_of(file, learning)
        self._rate, self._template = learning.rate, learning.template
        self._file = file
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=learning.rank,
            lora_alpha=2 * learning.rank,
            target_modules=list(_MODULES),
            layers_to_transform=list(range(learning.above, model.config.num_hidden_layers)),
        )
        self._lora: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
        self._weights = [weight for weight in self._lora.parameters() if weight.requires_grad]
        self._masters = [weight.detach().float().requires_grad_() for weight in self._weights]
        self._optimizer = torch.optim.AdamW(self._masters, lr=learning.rate, weight_decay=0.01)
        self._body = model.model
        self._below = nn.ModuleList(self._body.layers[: learning.above])
        self._above = nn.ModuleList([*map(_Done, self._below), *self._body.layers[learning.above :]])
        self._body.layers = self._above
        self._known: dict[tuple[int, ...], Tensor] = {}

    def logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """The head's numbers (T,) for the tokens of each row that have a target."""
        self._compute([row for row in rows if tuple(row.ids) not in self._known])
        given = [self._known[tuple(row.ids)] for row in rows]
        mask = torch.tensor([[1] * len(each) + [0] * (max(map(len, given)) - len(each)) for each in given])
        hidden = self._body(
            inputs_embeds=nn.utils.rnn.pad_sequence(given, batch_first=True), attention_mask=mask, use_cache=False
        ).last_hidden_state
        said = self._lora.base_model.model.score(hidden).float()[..., 0]
        return [each[len(row.ids) - len(row.targets) : len(row.ids)] for row, each in zip(rows, said, strict=True)]

    @torch.no_grad()
    def _compute(self, rows: Sequence[Row]) -> None:
        """What the lower layers make of rows, which no training changes."""
        if not rows:
            return
        norm, self._body.norm, self._body.layers = self._body.norm, nn.Identity(), self._below
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        hidden = self._body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        self._body.norm, self._body.layers = norm, self._above
        for row, each in zip(rows, hidden, strict=True):
            self._known[tuple(row.ids)] = each[: len(row.ids)].clone()

    def step(self, rows: Sequence[Row], progress: float) -> float:
        """One batch. Returns its loss.

        Args:
            rows: The batch.
            progress: Of the training, from 0 to 1.
        """
        self._lora.train()
        said = torch.cat(self.logits(rows))
        targets = torch.tensor([target for row in rows for target in row.targets])
        weight = torch.tensor([one for row in rows for one in row.weights])
        each = functional.binary_cross_entropy_with_logits(said, targets, reduction="none")
        loss = (each * weight).sum() / weight.sum()
        torch.autograd.backward(loss)
        for one, master in zip(self._weights, self._masters, strict=True):
            master.grad = None if one.grad is None else one.grad.float()
            one.grad = None
        nn.utils.clip_grad_norm_(self._masters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * min(1.0, 10 * progress) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        self._optimizer.step()
        with torch.no_grad():
            for one, master in zip(self._weights, self._masters, strict=True):
                one.copy_(master)
        return float(loss.detach())

    @torch.inference_mode()
    def scores(self, examples: Sequence[tuple[str, str]], batch: int = 16) -> list[float]:
        """The number at the end of each request with its answer."""
        self._lora.eval()
        rows = [Row(encoded(self.tokenizer, *example)[0], [0.0], [1.0]) for example in examples]
        order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
        found = [0.0] * len(rows)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            for at, said in zip(some, self.logits([rows[at] for at in some]), strict=True):
                found[at] = float(said[-1])
        return found

    def save(self, folder: Path, step: int) -> None:
        """The adapter in half precision, with the template, and what a later run goes on from."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self._lora, save_embedding_layers=False)
        save_file(
            {name: each.half().contiguous() for name, each in weights.items()}, folder / "adapter_model.safetensors"
        )
        config = self._lora.peft_config["default"]
        config.base_model_name_or_path = self._file.name
        config.inference_mode = True
        config.save_pretrained(str(folder))
        (folder / "chat_template.jinja").write_text(self._template, "utf-8")
        masters = [each.detach() for each in self._masters]
        torch.save({"masters": masters, "optimizer": self._optimizer.state_dict(), "step": step}, folder / "state.pt")

    def begin(self, folder: Path) -> None:
        """Takes the weights of another adapter of the same form. What it has not, as a head, stays fresh."""
        own = get_peft_model_state_dict(self._lora, save_embedding_layers=False)
        set_peft_model_state_dict(self._lora, own | load_file(folder / "adapter_model.safetensors"))
        for weight, master in zip(self._weights, self._masters, strict=True):
            master.data.copy_(weight.data)

    def resume(self, folder: Path) -> int:
        """Takes up what was saved, and returns its step. 0 where nothing was."""
        if not (folder / "state.pt").is_file():
            return 0
        saved = torch.load(folder / "state.pt", weights_only=True)
        self._optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for weight, master, kept in zip(self._weights, self._masters, saved["masters"], strict=True):
                weight.copy_(master.copy_(kept))
        return int(saved["step"])


class _Done(nn.Module):
    """Stands where a layer was whose outputs are at hand."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """What came in."""
        return hidden


def _batches(rows: Sequence[Row], learning: Learning) -> Iterator[list[list[Row]]]:
    """The batches of one pass after another, rows of like length together."""
    random = Random(learning.seed)
    while True:
        order = sorted(rows, key=lambda row: len(row.ids) + random.uniform(-5, 5))
        batches: list[list[Row]] = [[]]
        for row in order:
            if batches[-1] and (len(batches[-1]) + 1) * len(row.ids) > learning.tokens:
                batches.append([])
            batches[-1].append(row)
        random.shuffle(batches)
        yield batches
