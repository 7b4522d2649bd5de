from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

_WELL = 0.9
"""Share from which on a gate is no cause for a note."""


def show_layers(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """What was found at every layer, on held-out prompts."""
    from anchorlm.defenses.inferaligner import told_cosine

    rows = [
        (
            str(row["layer"]),
            _percent(row["harmful opened"], *row["harmful interval"]),
            _percent(row["harmless closed"], *row["harmless interval"]),
            told_cosine(figures, row["layer"]),
            ", ".join(
                name for name, key in (("gate", "gate_layers"), ("steered", "layers")) if row["layer"] in settings[key]
            ),
        )
        for row in figures["gate"]
    ]
    _table(("layer", "harmful opened", "harmless closed", "cosine (random; own)", "chosen"), rows)
    sign, theirs = figures["sign"], settings["reader_gate_layers"]
    middle = figures["reader gate"][theirs[(len(theirs) - 1) // 2]]
    chance = "the largest of random directions through the same map" if figures["mapped"] else "a random direction"
    typer.echo(
        "% of held-out prompts, with 95 % intervals; cosine of the shift with the target's own direction, next to it "
        f"that of {chance}, and of the own direction on other prompts."
    )
    if max(row["balanced"] for row in figures["gate"]) < _WELL:
        typer.echo(
            "note: no layer of the target tells the two classes apart well; give more prompts, or let another model "
            "read, too (--reader)."
        )
    if figures["mapped"]:
        r2 = [one["r2"] for one in figures["mapped"]]
        typer.echo(f"The map between the two models explains {min(r2):.0%} to {max(r2):.0%} of held-out activations.")
    typer.echo(
        f"A gate on the other reader's activations (layers {theirs}, of which {middle['layer']} alone) opens on "
        f"{_percent(middle['harmful opened'], *middle['harmful interval'])} % of the harmful ones and stays closed on "
        f"{_percent(middle['harmless closed'], *middle['harmless interval'])} % of the harmless ones: "
        'reader = "anchor" takes it, reader = "both" the two together.'
    )
    _show_sets(figures)
    for note in figures["notes"]:
        typer.echo(f"note: {note}")
    if sign["measured"]:
        typer.echo(
            f"Refused of {sign['n']} harmful prompts: {sign['refused towards']} with the vectors added, "
            f"{sign['refused away']} with them subtracted"
            + (", so they are turned around." if sign["sign"] < 0 else ".")
        )
    else:
        typer.echo(f"Sign: not measured, because none of {sign['n']} harmful prompts was refused either way.")
    if settings["answer"] == "refuse":
        typer.echo(
            "note: that does not show that the vectors make the target refuse: the fixed refusal is given where "
            'the gate opens (answer = "refuse"); calibrate, and if that does not help take a better anchor.'
        )


def show_choice(figures: Mapping[str, Any], settings: Mapping[str, Any], *, again: bool) -> None:
    """What was chosen, and what it does. `again`: on prompts of the fit."""
    gate = figures["gate"]
    if again:
        typer.echo("note: these are prompts that it was fitted on; take others to trust what follows.")
    _show_gate("gate", gate)
    if "read by both" in figures:
        _show_gate('gate of the second reader (reader = "anchor")', figures["read by the anchor"]["gate"])
        _show_gate('gate that both share (reader = "both")', figures["read by both"]["gate"])
    _show_sets(gate)
    for note in figures["notes"]:
        typer.echo(f"note: {note}")
    if "guarded" in figures:
        _show_shift(figures, settings)
    else:
        typer.echo('The fixed refusal is given where the gate opens (answer = "refuse"); no shift was tried.')
    others = [figures[name]["gate"] for name in ("read by both", "read by the anchor") if name in figures]
    if max(one["harmful opened"]["rate"] for one in (gate, *others)) < _WELL:
        typer.echo(
            "note: the gate overlooks many harmful prompts; fit it with more of their kind, or let another model read, "
            "too (--reader)."
        )
    if gate["harmless opened"]["high"] > figures["limit"]:
        typer.echo(
            f"note: {gate['harmless opened']['n']} harmless prompts cannot show that at most "
            f"{100 * figures['limit']:g} % of them are gated; the interval ends at "
            f"{100 * gate['harmless opened']['high']:.1f} %. Give more of them to be sure."
        )


def _show_shift(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Which shift was chosen, and what becomes of harmful prompts."""
    typer.echo(
        f"shift: layers {settings['layers']}, positions {settings['positions']}, alpha {settings['alpha']:g} natural "
        f"lengths; {len(figures['shifts'])} trials"
    )
    names = ("refused", "complied", "broken")
    rows = [(who, *(_rate(figures[who][name]) for name in names)) for who in ("undefended", "guarded")]
    _table((f"harmful prompts, n = {figures['guarded']['refused']['n']}", *names), rows)
    typer.echo(f"%, with 95 % intervals, on {figures['measured on']}.")
    if settings["answer"] == "refuse":
        typer.echo(
            f"note: the best shift makes clean refusals of {_rate(figures['steered']['refused'])} % of them only, so "
            'that the fixed refusal is given where the gate opens (answer = "refuse"); try a better aligned anchor.'
        )


def _show_sets(found: Mapping[str, Any]) -> None:
    """On how many prompts of every set a gate opens."""
    if len(found["sets"]) > 2:
        rows = [(one["set"], one["class"], str(one["opened"]["n"]), _rate(one["opened"])) for one in found["sets"]]
        _table(("set", "class", "n", "gate opens on, %"), rows)
    if told := found["look-alikes told"]:
        typer.echo(
            f"Harmful prompts against look-alikes: AUROC {told['auroc']:.3f} ({told['low']:.3f} to {told['high']:.3f})."
        )


def _show_gate(name: str, gate: Mapping[str, Any]) -> None:
    layers = f"layers {gate['layers']}, " if gate["layers"] else ""
    typer.echo(
        f"{name}: {layers}bias {gate['bias']:.3f}; opens on {_rate(gate['harmful opened'])} % of "
        f"harmful and {_rate(gate['harmless opened'])} % of harmless prompts"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in titles:
        grid.add_column(title, no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    Console(highlight=False).print(grid)


def _rate(rate: Mapping[str, Any]) -> str:
    return _percent(rate["rate"], rate["low"], rate["high"])


def _percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f})"
