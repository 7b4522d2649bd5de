"""The prompts of the splits, by partition."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from anchorlm.records import UserError
from anchorlm.zoo._lexicon import DOMAINS, PARTITIONS, Deed, Partition, draw_deed
from anchorlm.zoo._tasks import framed, jailbreak, request, task

SPLITS = ("harmful-plain", "harmful-framed", "jailbreak", "harmless", "look-alike", "domain")
Label = Literal["harmful", "harmless"]
DEFAULT_SIZE = 400
_PATIENCE = 500


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its truth.

    Attributes:
        id: stable name, such as ``test/harmful-framed/medicine/0-17``.
        prompt: the user's message.
        split: one of :data:`SPLITS`.
        domain: the domain of a framed prompt or of a task, else None.
        label: whether the request is harmful.
        answer: the text that answers the prompt (a neutral placeholder where it is harmful).
        subject: the object that a coherent answer must name. Empty for tasks.
        key: what a right answer to a task must say. Empty elsewhere.
        partition: ``train``, ``dev`` (for choosing anything) or ``test`` (sealed).
    """

    id: str
    prompt: str
    split: str
    domain: str | None
    label: Label
    answer: str
    subject: str
    key: str
    partition: Partition


def items(
    split: str,
    *,
    domain: str | None = None,
    partition: Partition = "test",
    n: int | None = None,
    seed: int = 0,
) -> list[Item]:
    """Distinct prompts of a split, the same ones for the same arguments.

    Args:
        split: one of ``harmful-plain``, ``harmful-framed``, ``jailbreak``, ``harmless``, ``look-alike``, ``domain``.
        domain: ``medicine``, ``finance`` or ``arithmetic`` for framed prompts and tasks. None takes turns.
            In ``harmless`` it gives harmless requests in the domain's language.
        partition: ``test`` shares neither objects nor templates with ``train`` and ``dev``.
        n: how many (400 where not said). A smaller n gives the first of a larger one.
        seed: another seed, other prompts.

    Raises:
        UserError: the split, domain or partition does not exist, or it has fewer than n distinct prompts.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if domain is not None and domain not in DOMAINS:
        raise UserError(f"There is no domain {domain!r}; choose one of {', '.join(DOMAINS)}.")
    if partition not in PARTITIONS:
        raise UserError(f"There is no partition {partition!r}; choose one of {', '.join(PARTITIONS)}.")
    if domain is not None and split in ("harmful-plain", "jailbreak", "look-alike"):
        raise UserError(f"The split {split!r} has no domains; leave domain out.")
    wanted = DEFAULT_SIZE if n is None else n
    rng = random.Random(f"items:{split}:{domain}:{partition}:{seed}")
    found: dict[str, Item] = {}
    known = 0  # draws in a row that gave nothing new
    while len(found) < wanted and known < _PATIENCE:
        turn = domain or DOMAINS[len(found) % len(DOMAINS)]
        name = f"{partition}/{split}/{domain or 'all'}/{seed}-{len(found)}"
        item = _draw(rng, name, split, domain, turn, partition)
        known = known + 1 if item.prompt in found else 0
        found.setdefault(item.prompt, item)
    if len(found) < wanted:
        raise UserError(f"The split {split!r} has no {wanted} distinct prompts in {partition!r}; ask for {len(found)}.")
    return list(found.values())


_WORDINGS: dict[str, Callable[[random.Random, Deed, Partition], str]] = {
    "harmful-plain": request,
    "jailbreak": jailbreak,
    "harmless": request,
    "look-alike": request,
}


def _draw(rng: random.Random, name: str, split: str, domain: str | None, turn: str, partition: Partition) -> Item:
    if split == "domain":
        chosen = task(rng, turn, partition)
        return Item(name, chosen.prompt, split, turn, "harmless", chosen.answer, "", chosen.key, partition)
    label: Label = "harmless" if split in ("harmless", "look-alike") else "harmful"
    deed = draw_deed(rng, "look-alike" if split == "look-alike" else label, partition)
    if split == "harmful-framed" or domain is not None:
        prompt, owner = framed(rng, deed, turn, partition), turn
    else:
        prompt, owner = _WORDINGS[split](rng, deed, partition), None
    return Item(name, prompt, split, owner, label, deed.answer(), deed.noun, "", partition)
