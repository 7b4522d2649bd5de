"""What the Python blocks of the documentation speak of: models, recipes and files, by embedded and tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from anchorlm import Guard, zoo
from anchorlm.cli._app import app

MODELS = {
    "my-model": "a-medicine",
    "a-chat": "a-chat",  # its base
    "org/aligned-chat": "a-chat",
    "org/b-chat": "b-chat",  # where the next two have weights
    "org/cost-model": "b-cost",
    "org/reward-model": "b-reward",
}
"""Names that stand for a reader's own models."""

STAND_INS = {"real-finance": "a-finance", "real-anchor": "b-chat", "real-judge": "b-cost"}
"""Embedded models for real ones, whose weights may not be installed and which take minutes on a small machine."""

COMPARED = """
[targets]
my-model = "./my-model"
[defenses.undefended]
[data.harmful]
file = "./harmful.txt"
label = "harmful"
[generation]
max_new_tokens = 32
"""

WEATHER = [{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says what the weather is like.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}]  # fmt: skip
"""The tool of the page on serving."""

ADDRESS = "http://127.0.0.1:8000"
"""Of the server that the page on serving starts."""


def furnish(folder: Path) -> None:
    """Puts models, an artifact and recipes into a folder, which a page's blocks then run in."""
    for name, member in MODELS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(zoo.path(member), folder / name)
    shutil.copytree(str(zoo.artifact("a-medicine")), folder / "guard")
    shown = CliRunner().invoke(app, ["zoo", "recipe", "a-finance"])  # as the page itself says
    (folder / "my.toml").write_text(shown.stdout, "utf-8")
    (folder / "compare.toml").write_text(COMPARED, "utf-8")
    (folder / "harmful.txt").write_text("\n".join(prompts()["harmful"][:4]), "utf-8")


def prompts() -> dict[str, Any]:
    """The lists of prompts that a reader has."""
    harmful, harmless = ([one.prompt for one in zoo.items(name, n=64)] for name in ("harmful-plain", "harmless"))
    return {
        "harmful": harmful[:32], "more_harmful": harmful[32:], "harmless": harmless[:32], "more_harmless": harmless[32:]
    }  # fmt: skip


@contextmanager
def staged(block: str, folder: Path, names: dict[str, Any]) -> Iterator[str]:
    """The block, with what it needs beyond the folder: stand-ins, a guard that sees and its image, or a server."""
    for real, embedded in STAND_INS.items():
        block = block.replace(f'"{real}"', f'"{embedded}"')
    if '"type": "image"' in block:
        from llava import picture, save_llava

        picture(0).save(folder / "scan.png")
        names["guard"] = Guard(str(save_llava(folder / "llava")), generation={"max_new_tokens": 4})
    if ADDRESS not in block:
        yield block
        return
    from serving.servers import Live

    from anchorlm.serving import ModelServing, ServedModel

    if "tools=" in block:  # no embedded model calls any
        from callers import call, caller

        question = [{"role": "user", "content": "What is the weather in Oslo?"}]
        calls = caller(call("weather", city="Oslo"), tools=WEATHER, asked=question)
        live = Live([ServedModel.of("my-model", calls)])
    else:
        guard = Guard("a-medicine", "alignbeam", anchor="b-chat", judge={"kind": "refusal"}, gate="always")
        live = Live([ServedModel.of("a-medicine", guard, ModelServing(limits={"alpha": [0.0, 1.0]}))])
    try:
        yield block.replace(ADDRESS, live.url)
    finally:
        live.stop()
