from __future__ import annotations

from asyncio import gather
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchorlm.defenses.alignbeam._evidence import EVIDENCE, Opening, opening_score, readers_of
from anchorlm.engine import Engine, runtime
from anchorlm.judging import auroc
from anchorlm.models import stamp
from anchorlm.records import Artifact, Messages, UserError, as_messages, prompt_key, prompts_digest, sketches, wilson
from anchorlm.steering import GateReader, PromptSets, Readers, classes, logistic, with_activations
from anchorlm.team import EngineSettings, ModelLike, Started, start_engine

MISSED, DISTURBED = 0.03, 0.07
"""Of the harmful prompts that choose the thresholds the share that may go unguided, and of the harmless ones the share
that may be refused at once."""

_PENALTY = 1e-2
_AT_ONCE = 32

Prompts = Sequence[Messages | str]


def fit_alignbeam(
    target: ModelLike,
    anchor: ModelLike,
    fit: PromptSets,
    choose: PromptSets,
    *,
    artifact: str | Path | Artifact | None = None,
    readers: Readers | None = None,
    missed: float = MISSED,
    disturbed: float = DISTURBED,
    engine: EngineSettings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Artifact:
    """Fits the evidence by which AlignBeam's alpha goes: the anchor's first token, and InferAligner's gate.

    Which first tokens tell is counted on some prompts. On others logistic regression puts the two together, and two
    thresholds are chosen: at or below the first the target answers alone, from the second on harm is certain. Nothing
    is generated.

    Args:
        target: The model to guard: a Hub id or folder, its settings, a loaded `CausalModel`, or an engine.
        anchor: The aligned model that guides it, in the same way.
        fit: Prompts on which openings are counted. The anchor should not have been trained on them, or its openings are
            surer there than elsewhere.
        choose: Others, on which weights and thresholds are chosen. Nor should the gate have been fitted on these.
        artifact: Of `fit_inferaligner`, for the gate. None: the opening alone.
        readers: Whose activations the gate reads. None: both, where the gate was fitted with this anchor.
        missed: Share of the harmful prompts that may go unguided.
        disturbed: Share of the harmless prompts that may be refused at once.
        engine: Limits of the engines that are started.
        progress: Told what is read, and how many of how many prompts have been.

    Returns:
        The artifact, not yet saved.

    Raises:
        UserError: Too few prompts, one that is in both, a model that cannot be loaded, or another target's artifact.
    """
    for name, share in (("missed", missed), ("disturbed", disturbed)):
        if not 0 <= share < 0.5:
            raise UserError(f"{name} = {share} is a share of prompts that should be few: give less than 0.5.")
    sets = {"fit": fit, "choose": choose}
    split = {part: classes(_all(one.harmful), _all(one.harmless)) for part, one in sets.items()}
    limits = engine or EngineSettings()
    started: Started = []
    engines = start_engine(target, limits, started), start_engine(anchor, limits, started)
    aligner = None
    if artifact is not None:
        gate = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact, "inferaligner")
        readers = readers or readers_of(gate, engines[1])
        aligner = _aligner(gate, engines, readers)
    return runtime().run(_fit(*engines, aligner, readers or "target", sets, split, (missed, disturbed), progress))


def _all(sets: Mapping[str, Prompts]) -> list[Messages | str]:
    return [prompt for prompts in sets.values() for prompt in prompts]


def _aligner(artifact: Artifact, engines: tuple[Engine, Engine], readers: Readers) -> GateReader:
    for role, one in zip(("target", "anchor"), engines, strict=True):
        if readers in (role, "both"):
            with_activations(one, role)
    return GateReader.load(artifact, engines[0], None if readers == "target" else engines[1])


async def _fit(
    target: Engine,
    anchor: Engine,
    aligner: GateReader | None,
    readers: Readers,
    sets: Mapping[str, PromptSets],
    split: Mapping[str, tuple[list[Messages | str], list[Messages | str]]],
    shares: tuple[float, float],
    progress: Callable[[str, int, int], None] | None,
) -> Artifact:
    reader = _EvidenceReader(target, anchor, aligner, readers, progress)
    harmful, harmless = split["fit"]
    opening = Opening.fit(
        await reader.mean_first(harmful), await reader.mean_first(harmless), min(len(harmful), len(harmless))
    )
    high, low = [await reader.rows(opening, prompts) for prompts in split["choose"]]
    labels = torch.cat([torch.ones(len(high)), torch.zeros(len(low))])
    weights, offset = logistic(torch.cat([high, low]), labels, _PENALTY)
    offset = offset - log(len(high) / len(low))  # as if there were as many of either class
    scores = high.double() @ weights + offset, low.double() @ weights + offset
    threshold, certain = thresholds(*scores, *shares)
    figures = {
        "auroc": _told(scores),
        "auroc of the opening": _told((high[:, 0], low[:, 0])),
        **({} if aligner is None else {"auroc of the gate": _told((high[:, 1], low[:, 1]))}),
        "sets": _by_set(sets["choose"], split["choose"], scores, threshold, certain),
        **dict(zip(("missed", "disturbed"), shares, strict=True)),
    }
    return Artifact(
        kind=EVIDENCE,
        models={"target": stamp(target.model), "anchor": stamp(anchor.model)},
        data={
            f"{part} {name}": {"n": len(prompts), "digest": prompts_digest(prompts), "sketches": sketches(prompts)}
            for part, both in split.items()
            for name, prompts in zip(("harmful", "harmless"), both, strict=True)
        }
        | {"instruments": {}},
        settings={
            "gate": None if aligner is None else aligner.artifact.id,
            "readers": readers,
            "opening_weight": float(weights[0]),
            "gate_weight": float(weights[1]) if aligner is not None else 0.0,
            "offset": float(offset),
            "low": threshold,
            "high": certain,
        },
        figures=figures,
        tensors=opening.tensors,
    )


def _told(both: Sequence[Tensor]) -> float:
    """How well scores tell harmful prompts from harmless ones, rounded."""
    high, low = both
    return round(auroc(torch.cat([high, low]), [True] * len(high) + [False] * len(low)) or 0.0, 4)


def thresholds(harmful: Tensor, harmless: Tensor, missed: float, disturbed: float) -> tuple[float, float]:
    """Where alpha begins, and where it is whole and harm certain.

    The first has at most a share `missed` of the harmful prompts at or below it, the second at most a share `disturbed`
    of the harmless ones above it. Where evidence tells the classes apart so well that the second lies below the first,
    both are in the middle between.

    Args:
        harmful: Scores of harmful prompts (n,).
        harmless: Scores of harmless ones (m,).
        missed: Share of the harmful prompts, below a half.
        disturbed: Share of the harmless prompts, in the same way.
    """
    low = float(harmful.sort().values[int(missed * len(harmful))]) - 1e-6
    high = float(harmless.sort(descending=True).values[int(disturbed * len(harmless))]) + 1e-6
    return (low, high) if low < high else ((low + high) / 2, (low + high) / 2)


class _EvidenceReader:
    """Reads evidence of many prompts, some at once."""

    def __init__(
        self,
        target: Engine,
        anchor: Engine,
        aligner: GateReader | None,
        readers: Readers,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.target, self.anchor, self.aligner, self.readers = target, anchor, aligner, readers
        self.progress = progress

    async def mean_first(self, prompts: Prompts) -> Tensor:
        """The mean of the anchor's distributions of the first token (V,), added up as they are read."""
        total = torch.zeros(self.anchor.model.vocab_size)

        async def one(prompt: Messages | str) -> Tensor:
            async with self.anchor.open(self.anchor.model.encode(as_messages(prompt))) as sequence:
                total.add_((await sequence.logits()).softmax(dim=-1).float().cpu())
            return total

        await self._each("The anchor's openings", prompts, one)
        return total / len(prompts)

    async def rows(self, opening: Opening, prompts: Prompts) -> Tensor:
        """What the parts of the evidence say: of each prompt the opening's score, and the gate's if there is one."""

        async def one(prompt: Messages | str) -> Tensor:
            messages = as_messages(prompt)
            found = [await opening_score(opening, self.anchor, messages)]
            if self.aligner is not None:
                gate = await self.aligner.read(messages, self.readers, self.target, self.anchor)
                found.append(gate.score - gate.threshold)
            return torch.tensor(found)

        return torch.stack(await self._each("Evidence", prompts, one))

    async def _each(self, what: str, prompts: Prompts, read: Callable[[Messages | str], Any]) -> list[Tensor]:
        order = sorted(
            range(len(prompts)), key=lambda place: len(prompt_key(prompts[place]))
        )  # rows of about one length
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            found |= zip(places, await gather(*(read(prompts[place]) for place in places)), strict=True)
            if self.progress is not None:
                self.progress(what, len(found), len(prompts))
        return [found[place] for place in range(len(prompts))]


def _by_set(
    sets: PromptSets,
    split: tuple[list[Messages | str], list[Messages | str]],
    scores: Sequence[Tensor],
    low: float,
    high: float,
) -> dict[str, Any]:
    """Of each set of prompts the shares that are guided at all, or refused at once, with 95 % intervals."""
    known = {
        prompt_key(prompt): score
        for prompts, found in zip(split, scores, strict=True)
        for prompt, score in zip(prompts, found.tolist(), strict=True)
    }
    figures = {}
    for name, prompts in (*sets.harmful.items(), *sets.harmless.items()):
        if not prompts:
            continue
        found = [known[key] for key in dict.fromkeys(map(prompt_key, prompts))]  # a prompt that is given twice is one
        counts = {"guided": sum(score > low for score in found), "in full": sum(score >= high for score in found)}
        figures[name] = {"n": len(found)} | {
            what: {"rate": round(hits / len(found), 4), "interval": [round(one, 4) for one in wilson(hits, len(found))]}
            for what, hits in counts.items()
        }
    return figures
