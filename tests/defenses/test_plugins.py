from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pytest
from factories import tiny_model

from anchorlm.defenses import Defense, DefenseSettings, Undefended, defense_names, find_defense
from anchorlm.guard import Guard, Recipe
from anchorlm.records import Event, Finished, Request, TextDelta, Usage, UserError

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package, really built and installed, on the path of this process."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for file in PLUGIN.rglob("*"):
        if file.suffix in (".py", ".toml"):
            copy = source / file.relative_to(PLUGIN)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(site), str(source)],
        check=True,
    )  # fmt: skip
    sys.path.insert(0, str(site))
    yield
    sys.path.remove(str(site))


@pytest.mark.parametrize(("how", "early"), [("tokens", True), ("blocks", True), ("whole", False)])
def test_only_what_streams_whole_is_held_back_until_its_end(
    how: Literal["tokens", "blocks", "whole"], early: bool
) -> None:
    done = []

    class InTwoPieces(Defense):
        name = "two_pieces"
        streams = how

        async def respond(self, request: Request) -> AsyncIterator[Event]:
            yield TextDelta("one ")
            done.append(True)
            yield TextDelta("two")
            yield Finished("stop", Usage(1, 2, 2))

    stream = Guard(tiny_model("llama"), InTwoPieces).stream("x")
    assert next(stream) == TextDelta("one ")
    assert bool(done) != early
    assert [event.text for event in stream if isinstance(event, TextDelta)] == ["two"]


def test_built_in_defenses_are_registered_like_any_other() -> None:
    for name in ("alignbeam", "best_of_n", "goal_priority", "safe_decoding", "self_reminder", "undefended"):
        found = find_defense(name)
        assert issubclass(found, Defense)
        assert found.name == name
    assert find_defense("undefended") is Undefended


@pytest.mark.usefixtures("_installed")
def test_an_installed_package_brings_a_defense_with_knobs_of_its_own() -> None:
    assert "parrot" in defense_names()
    guard = Guard(tiny_model("llama"), "parrot", times=2)
    assert guard.chat([{"role": "user", "content": "hello"}]).text == "hello hello"
    assert guard.chat([{"role": "user", "content": "hello"}], knobs={"times": 1}).text == "hello"
    with pytest.raises(UserError, match="times = 0 does not fit the defense parrot"):
        guard.chat("hello", knobs={"times": 0})


@pytest.mark.usefixtures("_installed")
def test_a_folder_in_a_knob_of_its_own_is_relative_to_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "parrot.toml"
    file.write_text('target = "./model"\n[defense]\nname = "parrot"\nsongs = "../songs"\n')
    recipe = Recipe.load(file)
    assert recipe.knobs == {"songs": str(tmp_path.parent / "songs")}
    assert recipe.target.path == str(tmp_path / "model")


def test_knobs_are_parsed_once_for_a_guard_and_once_for_a_request() -> None:
    parsed: list[dict[str, Any]] = []

    class Counted(DefenseSettings):
        @classmethod
        def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
            parsed.append(dict(values))
            return super().parse(values, where=where)

    class Plain(Undefended):
        settings_type = Counted

    guard = Guard(tiny_model("llama"), Plain, refusal="No.")
    assert parsed == [{"refusal": "No."}]
    guard.chat("x", knobs={"refusal": "Never."}, max_new_tokens=2)
    assert parsed[1:] == [{"refusal": "Never."}]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken_parrot", "cannot be imported"),
        ("not_a_defense", "not a subclass"),
        ("nobody", "installed are: .*parrot"),
    ],
)
def test_a_defense_that_cannot_be_had_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_defense(name)
