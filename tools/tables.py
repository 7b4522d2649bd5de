"""The tables of README and documentation that are written from the code: `python -m tools.tables` (`make docs-tables`).

Such a table stands between two comments: `<!-- table: knobs alignbeam -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from anchorlm.defenses import DefenseSettings, find_defense
from anchorlm.records import Settings

ROOT = Path(__file__).resolve().parent.parent

SPAN = re.compile(r"(?ms)^(<!-- table: (.+?) -->)\n.*?^(<!-- end of table -->)$")

LONGEST = 24
"""Characters of a default that a table shows."""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes all tables again."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    for page in pages():
        text = page.read_text("utf-8")
        if (fresh := written(text)) != text:
            page.write_text(fresh, "utf-8")
            print(f"{page.relative_to(ROOT)}: written again")


def pages() -> list[Path]:
    """Everything that may hold such tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def written(text: str) -> str:
    """A page with its tables as the code says now."""
    return SPAN.sub(lambda span: f"{span[1]}\n{made(span[2])}\n{span[3]}", text)


def made(name: str) -> str:
    """A table by what its comment says: the kind, and what it is of."""
    kind, *of = name.split()
    return KINDS[kind](*of)


# --- knobs and other settings ---------------------------------------------------------------------------------------


def knobs(defense: str) -> str:
    """The knobs of one defense that its own class names, with the paper's values, if any are known."""
    return _fields(_own(find_defense(defense).settings_type), "knob")


def companions(*defenses: str) -> str:
    """The knobs of several defenses in one table."""
    rows = [
        (f"`{defense}`", *row)
        for defense in defenses
        for row in _rows(_own(find_defense(defense).settings_type, shared=False))
    ]
    return _table(("defense", "knob", "default", "what it does"), rows)


def settings(place: str) -> str:
    """The settings of a class, as `package:Class`."""
    module, name = place.split(":")
    return _fields(getattr(import_module(module), name).model_fields, "setting")


def _own(kind: type[DefenseSettings], *, shared: bool = True) -> dict[str, FieldInfo]:
    """The fields that a defense's own file names: what it takes over from another method stands on that one's page."""
    names = {name for one in kind.__mro__ if one.__module__ == kind.__module__ for name in one.__annotations__}
    found = {name: field for name, field in kind.model_fields.items() if name in names}
    return {**found, **({"refusal": kind.model_fields["refusal"]} if shared else {})}


def _fields(fields: Mapping[str, FieldInfo], head: str) -> str:
    papers = [_paper(field) for field in fields.values()]
    rows = list(_rows(fields))
    if not any(papers):
        return _table((head, "default", "what it does"), rows)
    whole = [(name, default, paper, told) for (name, default, told), paper in zip(rows, papers, strict=True)]
    return _table((head, "default", "paper", "what it does"), whole)


def _rows(fields: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str, str]]:
    for name, field in fields.items():
        inner = field.default
        if isinstance(inner, Settings):  # a section of its own
            for one, own in type(inner).model_fields.items():
                yield f"`{name}.{one}`", _default(own), own.description or ""
        else:
            yield f"`{name}`", _default(field), field.description or ""


def _paper(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("paper", "")) if isinstance(extra, dict) else ""


def _default(field: FieldInfo) -> str:
    value: Any = None if field.is_required() else field.get_default(call_default_factory=True)
    if value is None or value in ("", (), [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if isinstance(value, str):
        return f"`{value}`" if len(value) <= LONGEST else "a text"
    return (f"{value:,}" if value >= 10_000 else str(value)) if isinstance(value, int) else f"{value:g}"


# --- commands -------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its options, as `--help` tells them."""
    from anchorlm.cli._app import app

    return "\n\n".join(_command(*one) for one in _commands(typer.main.get_command(app), ("anchorlm",)))


def _commands(one: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    if isinstance(one, TyperGroup):
        for name, inner in sorted(one.commands.items()):
            yield from _commands(inner, (*path, name))
    else:
        yield path, one


def _command(path: tuple[str, ...], command: TyperCommand) -> str:
    rows = [row for one in command.params if (row := _option(one)) is not None]
    head = f"### {' '.join(path)}\n\n{' '.join((command.help or '').split())}"
    return f"{head}\n\n{_table(('option', 'default', 'what it does'), rows)}" if rows else head


def _option(one: Any) -> tuple[str, str, str] | None:
    if isinstance(one, TyperArgument):
        return f"`{one.metavar or one.name}`", "", one.help or ""
    if not isinstance(one, TyperOption) or one.hidden or one.name == "help":
        return None
    words = [*one.opts, *one.secondary_opts]
    default = "" if one.is_flag or one.default in (None, "", False) or callable(one.default) else f"`{one.default}`"
    return ", ".join(f"`{word}`" for word in words), default, one.help or ""


# --- what the demo found --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the demo's table has a figure.

    Attributes:
        columns: The columns that count.
        part: Which figure of a cell such as `refused/complied/broken`.
    """

    columns: tuple[int, ...]
    part: int = 0

    def of(self, rows: Sequence[Sequence[str]]) -> str:
        """The range of the figure over rows."""
        found = sorted((row[column].split("/")[self.part] for row in rows for column in self.columns), key=float)
        return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


SUMMED = (Cells((2, 3, 4), 1), Cells((5, 6), 0), Cells((7,)))
"""Harmful prompts that got an answer, harmless prompts that were refused, right answers."""

NEEDS = {
    "undefended": "",
    "alignbeam": "an anchor and a judge",
    "inferaligner": "an artifact that you fit to your model",
    "inferenceguard": "a cost and a reward model, here also a gate, an anchor and a judge",
}
"""What you need for each defense that the README shows."""


def demo() -> str:
    """The table of docs/demo.md in four rows: ranges over its specialists and kinds of prompts."""
    lines = re.findall(r"(?m)^\| (a-.*) \|$", (ROOT / "docs/demo.md").read_text("utf-8"))
    found = [[cell.strip() for cell in line.split("|")] for line in lines]
    rows = []
    for name, needed in NEEDS.items():
        own = [row for row in found if row[1] == f"`{name}`"]
        shares = [f"{cells.of(own)} %" for cells in SUMMED]
        time = "1" if name == "undefended" else f"{Cells((8,)).of(own)} times"
        rows.append((f"`{name}`", *shares, time, needed))
    head = ("", "harmful prompts answered", "harmless prompts refused", "right answers in the domain")
    return _table((*head, "time per response", "what you need"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    joined = ("".join(f" {cell.replace('|', '&#124;')} |" if cell else " |" for cell in line) for line in lines)
    return "\n".join(f"|{cells}" for cells in joined).replace("| --- |", "|---|").replace(" --- |", "---|")


KINDS: dict[str, Callable[..., str]] = {
    "knobs": knobs,
    "companions": companions,
    "settings": settings,
    "commands": commands,
    "demo": demo,
}


if __name__ == "__main__":
    main()
