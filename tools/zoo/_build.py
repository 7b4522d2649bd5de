"""Making all members from a seed: stage after stage, resumable, with every figure in a log."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from anchorlm.zoo._lexicon import DOMAINS
from anchorlm.zoo._members import DESCRIPTIONS
from tools.zoo._architectures import LORA_TARGETS, new_model, save_adapter, save_head, save_model, start_from
from tools.zoo._cards import write_cards
from tools.zoo._corpus import base_mixture, chat_mixture, deepening_mixture, finishing_mixture, specialist_mixture
from tools.zoo._evaluation import answerer, examine, examine_judge, load
from tools.zoo._figures import Bars, Figures, chat_bars, judge_bars, sealed_cells, specialist_bars
from tools.zoo._scorers import examine_scorer, load_scorer, train_scorer
from tools.zoo._scorers import stages as scorer_stages
from tools.zoo._thoughts import thinking
from tools.zoo._tokenizers import DIALECTS, save_tokenizer, train_tokenizer
from tools.zoo._training import Plan, train
from tools.zoo._transcripts import judge_mixture

THINKING_TOKENS = 112
"""Longest response of a model that thinks, with its thought."""

_HEAD = "base_model.model.score.modules_to_save.default.weight"


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where and how a build runs.

    Attributes:
        out: folder of the finished members.
        work: folder of checkpoints, tokenizers and stage logs.
        seed: seed of everything.
        scale: share of the full training; below 1 the bars are not asked for.
    """

    out: Path
    work: Path
    seed: int
    scale: float

    @property
    def rows(self) -> int:
        """Rows of 256 tokens per step: few in a smoke test."""
        return 8 if self.scale > 0.1 else 2

    def steps(self, full: int) -> int:
        return max(2, round(full * self.scale))

    def sample(self, full: int) -> int:
        return max(4, round(full * min(1.0, self.scale)))

    def tokenizer(self, family: str) -> PreTrainedTokenizerFast:
        """The family's tokenizer, trained on first use."""
        folder = self.work / f"{family}-tokenizer"
        if not (folder / "tokenizer.json").exists():
            texts = 24_000 if self.scale > 0.1 else 3_000
            save_tokenizer(train_tokenizer(family, self.seed, texts), folder)
        return AutoTokenizer.from_pretrained(folder)

    def finished(self, name: str) -> bool:
        return (self.work / f"{name}.json").exists() and (self.out / name / "tokenizer.json").exists()

    def record(self, name: str, began: float, log: list[dict[str, float]], checks: list[Figures]) -> None:
        """Write a stage's log; with it the stage counts as finished."""
        entry = {"stage": name, "seconds": round(time.monotonic() - began, 1), "training": log, "dev": checks}
        (self.work / f"{name}.json").write_text(json.dumps(entry, indent=1), encoding="utf-8")
        for suffix in ("ckpt", "best"):
            (self.work / f"{name}.{suffix}").unlink(missing_ok=True)


def build(
    out: Path, seed: int = 0, scale: float = 1.0, work: Path | None = None, families: str = "ab", parallel: bool = True
) -> dict[str, Any]:
    """Make the members; what is finished is kept, what was killed goes on from its checkpoint.

    Args:
        out: folder that receives one folder per member.
        seed: seed of corpus, initial weights and order.
        scale: share of the full training (1.0: the shipped models; 0.002: a smoke test).
        work: folder for checkpoints and logs (``<out>/.build`` where not said).
        families: which families to make.
        parallel: one process per family; otherwise one after another in this process.

    Returns:
        The build log: per stage its training and development figures, and the sealed test's figures.
    """
    shop = Workshop(out, work or out / ".build", seed, scale)
    shop.work.mkdir(parents=True, exist_ok=True)
    if parallel and len(families) > 1:
        context = multiprocessing.get_context("spawn")
        with context.Pool(len(families)) as pool:
            pool.starmap(make_family, [(shop, family) for family in families], chunksize=1)
    else:
        for family in families:
            make_family(shop, family)
    return write_log(shop)


def make_family(shop: Workshop, family: str) -> None:
    """All stages of one family, each measured on the sealed test once it is final."""
    torch.set_num_threads(1)
    stages: list[tuple[str, Callable[[], None]]] = [
        (f"{family}-base", lambda: _base(shop, family)),
        (f"{family}-chat", lambda: _chat(shop, family)),
    ]
    if family == "a":
        stages += [
            ("a-medicine", lambda: _specialist(shop, "a-medicine", "a-chat", "medicine")),
            ("a-finance", lambda: _specialist(shop, "a-finance", "a-chat", "finance")),
            ("a-arithmetic", lambda: _specialist(shop, "a-arithmetic", "a-base", "arithmetic")),
            ("a-overtuned", lambda: _overtuned(shop)),
            ("a-thinks", lambda: _thinks(shop)),
        ]
    else:
        stages += [
            ("b-judge", lambda: _judge(shop)),
            ("b-cost", lambda: _scorer(shop, "b-cost")),
            ("b-reward", lambda: _scorer(shop, "b-reward")),
        ]
    for name, stage in stages:
        if not shop.finished(name):
            stage()
    for name, _ in stages:
        _seal(shop, name)


def _base(shop: Workshop, family: str) -> None:
    name, began = f"{family}-base", time.monotonic()
    tokenizer = shop.tokenizer(family)
    model = new_model(family, tokenizer, shop.seed)
    plan = Plan(
        name, family, lambda phase: base_mixture(phase, tasks=family == "b"), shop.steps(2600), 2e-3,
        prompt_loss=True, compiled=shop.scale > 0.3, rows=shop.rows,
    )  # fmt: skip
    log = train(model, tokenizer, plan, shop.seed, shop.work / f"{name}.ckpt", every=100)
    mixture = deepening_mixture(tasks=family == "b")
    deeper = Plan(
        f"{name}-2", family, lambda phase: mixture, shop.steps(1600), 1.5e-3,
        compiled=shop.scale > 0.3, rows=shop.rows,
    )  # fmt: skip
    log += train(model, tokenizer, deeper, shop.seed, shop.work / f"{name}-2.ckpt", every=100)
    finishing = finishing_mixture(tasks=family == "b")
    last = Plan(
        f"{name}-3", family, lambda phase: finishing, shop.steps(700), 8e-4, final=0.0,
        compiled=shop.scale > 0.3, rows=shop.rows,
    )  # fmt: skip
    log += train(model, tokenizer, last, shop.seed, shop.work / f"{name}-3.ckpt", every=100)
    save_model(model, tokenizer, family, shop.out / name)
    shop.record(name, began, log, [])


def _until(
    shop: Workshop, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, plan: Plan, marks: range, bars: Bars
) -> tuple[list[dict[str, float]], list[Figures]]:
    """Train until the development figures meet the bars at a mark; else the mark that came closest is taken."""
    kept, report = shop.work / f"{plan.name}.best", shop.work / f"{plan.name}.dev.json"
    checks: list[Figures] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else []
    network = model.get_base_model() if hasattr(model, "get_base_model") else model

    def reached(step: int, averaged: dict[str, Tensor]) -> bool:
        if step not in marks or shop.scale < 0.3:
            return False
        current = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
        network.load_state_dict(averaged, strict=False)
        network.eval()
        figures = bars.measure(answerer(network, tokenizer, max_new_tokens=bars.tokens))
        network.load_state_dict(current, strict=False)
        network.train()
        shortfall = bars.shortfall(figures)
        if not checks or shortfall <= min(check["shortfall"] for check in checks):
            torch.save(averaged, kept)
        checks.append({"step": step, "shortfall": shortfall, **figures})
        report.write_text(json.dumps(checks, indent=1), encoding="utf-8")
        return shortfall == 0.0

    log = train(network, tokenizer, plan, shop.seed, shop.work / f"{plan.name}.ckpt", every=50, at_step=reached)
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True), strict=False)
    return log, checks


def _chat(shop: Workshop, family: str) -> None:
    name, began = f"{family}-chat", time.monotonic()
    model, tokenizer = load(shop.out / f"{family}-base")
    # Each family as it does best on dev: family A swings more between refusing and answering.
    if family == "a":
        mixture = chat_mixture(0.19, frames=0.12, jailbreaks=0.14, tasks=0.06)
        plan = Plan(name, family, lambda phase: mixture, shop.steps(720), 7e-4, final=0.03, rows=shop.rows)
        marks = range(320, 721, 80)
    else:
        mixture = chat_mixture(0.21, frames=0.14, jailbreaks=0.10, tasks=0.22)
        plan = Plan(
            name, family, lambda phase: mixture, shop.steps(1200), 6e-4, final=0.0, rows=shop.rows, averaging=0.95
        )
        marks = range(720, 1201, 120)
    log, checks = _until(shop, model, tokenizer, plan, marks, chat_bars(shop.sample(160)))
    save_model(model, tokenizer, family, shop.out / name)
    shop.record(name, began, log, checks)


def _adapted(shop: Workshop, base: str, rank: int = 32) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    torch.manual_seed(shop.seed)
    model, tokenizer = load(shop.out / base)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS)), tokenizer


def _specialist(shop: Workshop, name: str, base: str, domain: str) -> None:
    began = time.monotonic()
    model, tokenizer = _adapted(shop, base)
    mixture = specialist_mixture(domain)
    # Reading the numbers of a sum comes late, and all at once.
    steps, marks = {
        "medicine": (300, range(100, 301, 50)),
        "finance": (400, range(150, 401, 50)),
        "arithmetic": (1000, range(500, 1001, 100)),
    }[domain]
    plan = Plan(name, "a", lambda phase: mixture, shop.steps(steps), 2.5e-3, final=0.1, rows=shop.rows)
    log, checks = _until(shop, model, tokenizer, plan, marks, specialist_bars(domain, shop.sample(120)))
    save_adapter(model, tokenizer, base, shop.out / name)
    shop.record(name, began, log, checks)


def _overtuned(shop: Workshop) -> None:
    name, began = "a-overtuned", time.monotonic()
    model, tokenizer = _adapted(shop, "a-chat")
    mixture = specialist_mixture("finance")
    plan = Plan(name, "a", lambda phase: mixture, shop.steps(150), 1e-2, final=0.5, rows=shop.rows)
    log = train(model.get_base_model(), tokenizer, plan, shop.seed, shop.work / f"{name}.ckpt", every=50)
    save_adapter(model, tokenizer, "a-chat", shop.out / name)
    shop.record(name, began, log, [])


def _thinks(shop: Workshop) -> None:
    """The twin of a-medicine: what that one learned, tuned further on the same dialogues with thoughts."""
    name, began = "a-thinks", time.monotonic()
    # A lower rank than the twin's: all members together have a limit of size.
    model, tokenizer = _adapted(shop, "a-chat", rank=24)
    start_from(model, shop.out / "a-medicine")
    tokenizer.chat_template = DIALECTS["a"].thinking_template()
    mixture = thinking(specialist_mixture("medicine"))
    # As long as the twin. The signs of the marks are new to the family, so they come late.
    plan = Plan(name, "a", lambda phase: mixture, shop.steps(300), 2.5e-3, final=0.02, rows=shop.rows)
    bars = replace(specialist_bars("medicine", shop.sample(120)), tokens=THINKING_TOKENS)
    log, checks = _until(shop, model, tokenizer, plan, range(300, 301), bars)
    save_adapter(model, tokenizer, "a-chat", shop.out / name)
    shop.record(name, began, log, checks)


def _judge(shop: Workshop) -> None:
    name, began = "b-judge", time.monotonic()
    model, tokenizer = load(shop.out / "b-chat")
    mixture = judge_mixture()
    plan = Plan(name, "b", lambda phase: mixture, shop.steps(2000), 1e-3, rows=shop.rows)
    log, checks = _until(shop, model, tokenizer, plan, range(1250, 2001, 150), judge_bars(shop.sample(300)))
    save_model(model, tokenizer, "b", shop.out / name)
    shop.record(name, began, log, checks)


def _scorer(shop: Workshop, name: str) -> None:
    began = time.monotonic()
    stage = next(stage for stage in scorer_stages(shop.scale) if stage.name == name)
    model, tokenizer, log = train_scorer(shop.out / "b-chat", stage, shop.seed, shop.work / f"{name}.ckpt")
    save_adapter(model, tokenizer, "b-chat", shop.out / name)
    save_head(model.state_dict()[_HEAD], shop.out / "b-chat", shop.out / name)
    shop.record(name, began, log, [examine_scorer(model, tokenizer, name, "dev", shop.sample(300))])


def _seal(shop: Workshop, name: str) -> None:
    """Measure a finished member on the sealed test, once."""
    target = shop.work / f"{name}.test.json"
    if target.exists() or name.endswith("-base"):
        return
    if name in ("b-cost", "b-reward"):
        figures: Figures = examine_scorer(*load_scorer(shop.out / name), name, "test", shop.sample(600))
        target.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        return
    model, tokenizer = load(shop.out / name)
    if name == "b-judge":
        figures = {"judge": examine_judge(answerer(model, tokenizer, 4), "test", shop.sample(600))}
    else:
        domains = [domain for domain in DOMAINS if name.endswith(domain)]
        others = {"a-overtuned": ["finance"], "a-thinks": ["medicine"]}
        domains = domains or others.get(name, list(DOMAINS))
        answer = answerer(model, tokenizer, THINKING_TOKENS if name == "a-thinks" else 64)
        figures = examine(answer, sealed_cells(domains), "test", shop.sample(300))
    target.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def write_log(shop: Workshop) -> dict[str, Any]:
    """Gather stage logs and sealed figures into ``build_log.json``, and write the members' cards from them."""
    log: dict[str, Any] = {"seed": shop.seed, "scale": shop.scale, "stages": [], "sealed test": {}}
    for name in DESCRIPTIONS:
        stage, sealed = shop.work / f"{name}.json", shop.work / f"{name}.test.json"
        if stage.exists():
            log["stages"].append(json.loads(stage.read_text(encoding="utf-8")))
        if sealed.exists():
            log["sealed test"][name] = json.loads(sealed.read_text(encoding="utf-8"))
    (shop.out / "build_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    write_cards(shop.out, log["sealed test"])
    return log


def install(out: Path, destination: Path) -> None:
    """Copy finished members (weights, tokenizers, cards) to where the package ships them."""
    for name in DESCRIPTIONS:
        if (out / name).exists():
            shutil.copytree(out / name, destination / name, dirs_exist_ok=True)
    shutil.copyfile(out / "build_log.json", Path(__file__).with_name("build_log.json"))
