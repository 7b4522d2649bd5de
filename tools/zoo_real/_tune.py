"""LoRA on many short rows: the upper half of the layers, in bfloat16, with master weights in float32."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from anchorlm.models import CausalModel
from tools.zoo_real._packed import Row
from tools.zoo_real._prefix import answers_loss
from tools.zoo_real._train import Example

_log = logging.getLogger("zoo-real")

_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."
_LONG = 40
"""Rows more than so many tokens apart in length share no batch."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a specialist is tuned.

    Attributes:
        epochs: Passes over the rows of its task.
        batch: Rows of the task in a step.
        among: Rows of other kinds in every second step.
        rate: The highest learning rate. It rises for a twentieth of the steps and falls as a cosine does.
        rank: Of the LoRA.
        above: The first layer that learns. What is below needs no gradient.
        every: Steps from one checkpoint to the next.
        seed: Of the order of the rows and of the first weights.
    """

    epochs: float = 1.0
    batch: int = 32
    among: int = 12
    rate: float = 1.5e-3
    rank: int = 16
    above: int = 15
    every: int = 70
    seed: int = 0


def tune(
    model: CausalModel,
    task: Sequence[Example],
    others: Sequence[Example],
    tuning: Tuning,
    folder: Path,
    measure: Callable[[CausalModel, int], None],
    *,
    start: Sequence[Path] = (),
) -> None:
    """Trains an adapter, which is saved in `folder` whenever it has been measured. Goes on where it stopped.

    Args:
        model: The base. Its weights stay as they are.
        task: What to learn.
        others: What to stay able to do, an answer to each.
        tuning: How.
        folder: Of the adapter and of what a later run goes on from.
        measure: Called with the model and the step at every checkpoint.
        start: Folders of adapters whose sum is trained on, as one adapter. What it does in lower layers stays.
    """
    torch.manual_seed(tuning.seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tuning.json").write_text(json.dumps(asdict(tuning), indent=1) + "\n", "utf-8")
    lora, weights = _adapted(model, tuning, start)
    masters = [weight.detach().float().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=tuning.rate, weight_decay=0.0)
    state, done = folder / "state.pt", 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
        with torch.no_grad():
            for weight, master, kept in zip(weights, masters, saved["masters"], strict=True):
                weight.copy_(master.copy_(kept))
        _log.info("going on at step %d", done)
    steps = math.ceil(tuning.epochs * len(task) / tuning.batch)
    lessons, also = (
        _batches(model, rows, size, tuning.seed) for rows, size in ((task, tuning.batch), (others, tuning.among))
    )
    began, losses = perf_counter(), [0.0, 0.0]
    for step in range(1, steps + 1):
        parts = [next(lessons), next(also)]
        if step <= done:
            continue
        lora.train()
        for place, part in enumerate(parts[: 1 + step % 2]):
            loss = answers_loss(model.model, part) * (1.0, 0.5)[place]
            loss.backward()
            losses[place] = 0.9 * losses[place] + 0.1 * float(loss.detach())
        _step(weights, masters, optimizer, _rate(step, steps, tuning.rate))
        if step % 10 == 0:
            _log.info("step %d of %d, losses %.3f, %.3f, %.0f s", step, steps, *losses, perf_counter() - began)
        if step % tuning.every == 0 or step == steps:
            lora.eval()
            _save(lora, folder)
            kept = {"optimizer": optimizer.state_dict(), "masters": [each.detach() for each in masters], "step": step}
            torch.save(kept, state)
            measure(model, step)


def _adapted(model: CausalModel, tuning: Tuning, start: Sequence[Path]) -> tuple[Any, list[torch.nn.Parameter]]:
    """The model with LoRA in it, and the weights that learn."""
    layers = range(model.model.config.num_hidden_layers)
    adapted = set(layers[tuning.above :])
    for folder in start:
        settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if settings["lora_alpha"] != 2 * settings["r"]:
            raise ValueError(f"The adapter in {folder} is scaled otherwise than these are.")
        adapted.update(settings["layers_to_transform"])
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=2 * tuning.rank,
        target_modules=list(_MODULES),
        layers_to_transform=sorted(adapted),
        task_type="CAUSAL_LM",
    )
    model.model.set_attn_implementation("eager")  # its gradient takes a third of the time of sdpa's on CPUs
    lora = get_peft_model(model.model, config, autocast_adapter_dtype=False)
    lora.peft_config["default"].base_model_name_or_path = Path(model.name).name
    if start:
        _load(lora, start, tuning.rank)
    lower = tuple(f".layers.{layer}." for layer in layers[: tuning.above])
    for name, weight in lora.named_parameters():
        if any(layer in name for layer in lower):
            weight.requires_grad_(False)
    return lora, [weight for weight in lora.parameters() if weight.requires_grad]


def _load(lora: Any, start: Sequence[Path], rank: int) -> None:
    """Puts the sum of adapters in place of the first weights, module by module.

    What is beyond the rank is left out (the best approximation: Eckart and Young 1936). What is left of it adds nothing
    yet.
    """
    own = get_peft_model_state_dict(lora, save_embedding_layers=False)
    given = [load_file(folder / "adapter_model.safetensors") for folder in start]
    for name in [name for name in own if ".lora_A." in name]:
        other = name.replace(".lora_A.", ".lora_B.")
        found = [(each[other].float(), each[name].float()) for each in given if name in each]
        left, right = torch.cat([up for up, _ in found], dim=1), torch.cat([down for _, down in found])
        (q, r), (p, t) = torch.linalg.qr(left), torch.linalg.qr(right.T)
        u, values, v = torch.linalg.svd(r @ t.T)
        keep = min(rank, int((values > 1e-6 * values.max()).sum()))
        roots = values[:keep].sqrt()
        up, down = torch.zeros_like(own[other]), own[name].clone()
        up[:, :keep], down[:keep] = (q @ u[:, :keep]) * roots, (p @ v[:keep].T * roots).T
        own[other], own[name] = up, down
    set_peft_model_state_dict(lora, own)


def _step(weights: Sequence[Any], masters: Sequence[Any], optimizer: Any, rate: float) -> None:
    for weight, master in zip(weights, masters, strict=True):
        master.grad, weight.grad = weight.grad.float(), None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    with torch.no_grad():
        for weight, master in zip(weights, masters, strict=True):
            weight.copy_(master)


def _rate(step: int, steps: int, highest: float) -> float:
    return highest * min(1.0, step / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _save(lora: Any, folder: Path) -> None:
    lora.save_pretrained(str(folder), save_embedding_layers=False)
    file = folder / "adapter_model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})


def _batches(model: CausalModel, examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Row]]:
    """Epoch after epoch in another order, rows of like length together."""
    random = Random(seed)
    rows = [row(model, example) for example in examples]
    while True:
        batches: list[list[Row]] = [[]]
        for each in sorted(rows, key=lambda each: _length(each) + random.uniform(-8, 8)):
            if len(batches[-1]) == size or (batches[-1] and _length(each) > _length(batches[-1][0]) + _LONG):
                batches.append([])
            batches[-1].append(each)
        random.shuffle(batches)
        yield from batches


def row(model: CausalModel, example: Example) -> Row:
    """An example in tokens. An answer that is whole ends its turn."""
    prompt = model.encode([{"role": "user", "content": example.prompt}])
    text = model.response_lead.decode() + example.answer
    answer = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    return Row(prompt, [*answer, int(model.tokenizer.eos_token_id)] if example.whole else answer)


def _length(row: Row) -> int:
    return len(row.prompt) + len(row.answer)
