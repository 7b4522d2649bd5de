from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from anchorlm.records import wilson
from anchorlm.zoo import SPLITS

_WIDTH = 120
_TITLES = {"harmful-plain": "plain", "harmful-framed": "framed", "domain": "accuracy"}


@dataclass(frozen=True, slots=True)
class Cell:
    """What one defense did for one target on one split.

    Attributes:
        target: Name of the embedded model.
        defense: Name of the defense.
        split: Name of the split.
        n: Prompts.
        refused: How many got a clean refusal.
        complied: How many got a coherent answer.
        broken: How many got neither.
        correct: How many tasks were solved. None where the prompts are no tasks.
        seconds: Wall time of all prompts together, which ran side by side.
    """

    target: str
    defense: str
    split: str
    n: int
    refused: int
    complied: int
    broken: int
    correct: int | None
    seconds: float

    def row(self, cells: Iterable[Cell]) -> dict[str, Any]:
        """The cell as plain JSON data, with 95 % intervals. Its time compared with the undefended one among `cells`."""
        refused, complied = wilson(self.refused, self.n), wilson(self.complied, self.n)
        right = (None, None) if self.correct is None else wilson(self.correct, self.n)
        return {
            "target": self.target,
            "defense": self.defense,
            "split": self.split,
            "n": self.n,
            "refused": self.refused / self.n,
            "complied": self.complied / self.n,
            "broken": self.broken / self.n,
            "refused_low": refused[0],
            "refused_high": refused[1],
            "complied_low": complied[0],
            "complied_high": complied[1],
            "accuracy": None if self.correct is None else self.correct / self.n,
            "accuracy_low": right[0],
            "accuracy_high": right[1],
            "seconds_per_response": self.seconds / self.n,
            "ratio_to_undefended": ratio([self], cells),
        }


def ratio(own: Sequence[Cell], cells: Iterable[Cell]) -> float | None:
    """Time per response over that of the undefended target on the same splits. None where that was not measured."""
    floor = {(cell.target, cell.split): cell.seconds / cell.n for cell in cells if cell.defense == "undefended"}
    if any((cell.target, cell.split) not in floor for cell in own):
        return None
    return sum(cell.seconds / cell.n for cell in own) / sum(floor[cell.target, cell.split] for cell in own)


def table(cells: Sequence[Cell], seconds: float) -> str:
    """All cells, a row per target and defense."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in ("target", "defense"):
        grid.add_column(title, no_wrap=True)
    grid.add_column("n", justify="right", no_wrap=True)
    for title in (*(_TITLES.get(split, split) for split in SPLITS), "s/resp.", "ratio"):
        grid.add_column(title, justify="right", no_wrap=True)
    last = None
    for target, defense in dict.fromkeys((cell.target, cell.defense) for cell in cells):
        own = [cell for cell in cells if (cell.target, cell.defense) == (target, defense)]
        if last not in (None, target):
            grid.add_section()
        factor = ratio(own, cells)
        grid.add_row(
            target if target != last else "",
            defense,
            str(own[0].n),
            *(_shares(cell) for split in SPLITS for cell in own if cell.split == split),
            f"{sum(cell.seconds / cell.n for cell in own) / len(own):.3f}",
            "" if factor is None else f"{factor:.1f}",
        )
        last = target
    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, highlight=False)
    console.print(grid)
    console.print(
        "% refused/complied/broken of n unseen prompts per split. A good guard refuses the harmful ones (the "
        "first three columns), answers the others and keeps the accuracy. s/resp.: all prompts of a split side by "
        f"side; ratio: to undefended. {seconds:.0f} s in all."
    )
    return text.getvalue()


def _shares(cell: Cell) -> str:
    if cell.correct is not None:
        return f"{100 * cell.correct / cell.n:.0f}"
    return "/".join(f"{100 * count / cell.n:.0f}" for count in (cell.refused, cell.complied, cell.broken))
