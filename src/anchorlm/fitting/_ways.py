from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anchorlm.engine import Engine
from anchorlm.fitting._gates import GateChoice, look_means, rate
from anchorlm.fitting._shifts import Step
from anchorlm.fitting._talks import ANSWERED, FORMS, REFUSED, earlier_turns, in_form
from anchorlm.records import Messages
from anchorlm.steering import Aligner, Look, Reader, as_texts, each_look, looks

PLAIN = "as given"


@dataclass(frozen=True, slots=True)
class Ways:
    """Prompts of both classes, harmful and harmless, in the ways in which people ask.

    Attributes:
        forms: For each request, which way: all prompts as they were given, then each again in one of `FORMS`.
        shown: What a gate reads of each request.
        sizes: How many prompts there are.
        earlier: Harmless turns with which conversations begin.
    """

    forms: tuple[list[str], list[str]]
    shown: tuple[list[list[Look]], list[list[Look]]]
    sizes: tuple[int, int]
    earlier: list[Messages]


async def ways(target: Engine, harmful: Sequence[Messages], harmless: Sequence[Messages]) -> Ways:
    """The prompts as they are, and each once more in a conversation, in a system's turn, or raw."""
    earlier = await earlier_turns(target, harmless)
    forms: tuple[list[str], list[str]] = ([], [])
    shown: tuple[list[list[Look]], list[list[Look]]] = ([], [])
    for names, requests, prompts, answer in zip(forms, shown, (harmful, harmless), (REFUSED, ANSWERED), strict=True):
        names += [PLAIN] * len(prompts)
        requests += [looks(prompt) for prompt in prompts]
        for number, prompt in enumerate(prompts):
            form = FORMS[number % len(FORMS)]
            if (request := in_form(form, earlier, number, prompt, answer)) is not None:
                names.append(form)
                requests.append(looks(request))
    return Ways(forms, shown, (len(harmful), len(harmless)), earlier)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reader's gate said of every request, harmful and harmless.

    Attributes:
        asked: (n, K, L) scores of the looks, `-inf` where a request has fewer than K.
    """

    asked: tuple[Tensor, Tensor]

    def means(self, layers: Sequence[int]) -> Means:
        """A gate's scores, from those of the layers that it reads."""
        one, other = (look_means(scores, layers) for scores in self.asked)
        return Means((one, other))


@dataclass(frozen=True, slots=True)
class Means:
    """One gate's scores of every request, harmful and harmless.

    Attributes:
        asked: (n, K) of the looks.
    """

    asked: tuple[Tensor, Tensor]

    @property
    def worst(self) -> tuple[Tensor, Tensor]:
        """(n,) of the worst look."""
        return self.asked[0].amax(dim=1), self.asked[1].amax(dim=1)

    def with_other(self, other: Means) -> Means:
        """The scores of two readers' gate: their mean, look by look."""
        one, two = ((mine + theirs) / 2 for mine, theirs in zip(self.asked, other.asked, strict=True))
        return Means((one, two))


async def read_ways(aligner: Aligner, reader: Reader, engine: Engine, asked: Ways, step: Step) -> Seen:
    """Reads every request with one reader; what several of them have in common is read once."""
    what = "Reading the prompts" if reader == "target" else "Reading them with the second reader"
    gate = aligner.gates[reader]
    width = max(len(shown) for some in asked.shown for shown in some)
    alike = as_texts if reader == "anchor" else list
    requests = [[alike(shown) for shown in some] for some in asked.shown]
    single = {look.key: replace(look, turns=0) for some in requests for shown in some for look in shown}
    scores: dict[str, Tensor] = {}
    keys = iter(single)
    async for (activations,) in each_look(engine, [[look] for look in single.values()]):
        scores[next(keys)] = gate.scores(activations)
        step(what, len(scores), len(single))

    def of(some: Sequence[Sequence[Look]]) -> Tensor:
        found = torch.full((len(some), width, len(gate.bias)), -torch.inf)
        for row, shown in enumerate(some):
            for place, look in enumerate(shown):
                found[row, place] = scores[look.key]
        return found

    return Seen((of(requests[0]), of(requests[1])))


def gate_data(gate: GateChoice, means: Means, asked: Ways) -> dict[str, Any]:
    """What a gate does with prompts as they were given, and with those in another form."""

    def rates(form: str) -> dict[str, Any]:
        found = {}
        for name, worst, forms in zip(("harmful", "harmless"), means.worst, asked.forms, strict=True):
            chosen = [bool(one > -gate.bias) for one, own in zip(worst, forms, strict=True) if own == form]
            if chosen:
                found[f"{name} opened"] = rate(sum(chosen), len(chosen))
        return found

    return {
        "layers": list(gate.layers),
        "bias": round(gate.bias, 4),
        **rates(PLAIN),
        "margin": round(gate.margin, 4),
        "in other forms": {form: found for form in FORMS if (found := rates(form))},
    }
