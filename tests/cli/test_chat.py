from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import OPEN, thinker
from typer.testing import Result

from anchorlm.cli._chat import Session
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.records import UserError

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def guard(alignbeam_recipe: Path) -> Guard:
    return Guard.from_recipe(alignbeam_recipe)


def test_piped_lines_are_answered_in_order(invoke: Invoke, plain_recipe: Path) -> None:
    result = invoke(
        "chat", "-r", plain_recipe, stdin="Hi\n\n/set max_new_tokens=2\nAgain\n/reset\n/help\n/quit\nnever\n"
    )
    assert result.exit_code == 0, result.stderr
    assert "max_new_tokens=2" in result.stdout
    assert "forgotten" in result.stdout
    assert "/trace" in result.stdout


def test_a_bad_line_is_one_sentence_and_the_rest_goes_on(invoke: Invoke, alignbeam_recipe: Path) -> None:
    result = invoke("chat", "-r", alignbeam_recipe, stdin="/set alpha=1.4\n/dance\n/set alpha=0.7\nHi\n/trace\n")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 2
    assert "alpha=0.7" in result.stdout
    assert '"weight": 0.7' in result.stdout


def test_a_streamed_turn_is_the_whole_answer_without_control_characters(guard: Guard) -> None:
    said = "".join(Session(guard).say("Bake a cake"))
    whole = guard.chat([{"role": "user", "content": "Bake a cake"}]).text
    assert (
        said == "".join(letter for letter in whole if letter in "\n\t" or letter.isprintable() or letter == " ") + "\n"
    )


THOUGHT, ANSWER = "The fox asks.", "How do I bake bread?"


def thinking(policy: Any) -> Guard:
    engine = LocalEngine(thinker(f"{THOUGHT}\n</think>\n\n{ANSWER}", OPEN))
    return Guard(engine, thoughts=policy, generation={"max_new_tokens": 40})


def test_a_shown_thought_is_dim_and_apart_from_the_answer() -> None:
    pieces = list(Session(thinking("show"), dim=True).say("hi"))
    between = pieces.index("\n\n")
    thought, answer = pieces[:between], pieces[between + 1 :]
    assert all(piece.startswith("\x1b[2m") and piece.endswith("\x1b[0m") for piece in thought)
    assert "".join(piece.removeprefix("\x1b[2m").removesuffix("\x1b[0m") for piece in thought) == THOUGHT
    assert "".join(answer) == f"{ANSWER}\n"


def test_without_a_terminal_a_shown_thought_stands_between_marks() -> None:
    assert "".join(Session(thinking("show")).say("hi")) == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}\n"


@pytest.mark.parametrize("dim", [True, False])
def test_a_hidden_thought_is_not_shown(dim: bool) -> None:
    assert "".join(Session(thinking("hide"), dim=dim).say("hi")) == f"{ANSWER}\n"


def test_a_shown_thought_is_no_part_of_what_the_next_turn_reads() -> None:
    guard = thinking("show")
    session = Session(guard)
    "".join(session.say("hi"))
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ANSWER}]
    expected = guard.chat([*history, {"role": "user", "content": "Two"}])
    said = "".join(session.say("Two")).removesuffix("\n")
    assert said.rpartition("</think>\n\n")[2] == "".join(c for c in expected.text if c.isprintable() or c in "\n\t")


def test_turns_are_remembered_until_reset(guard: Guard) -> None:
    session = Session(guard)
    first = "".join(session.say("One"))
    second = "".join(session.say("Two"))
    answer = guard.chat([{"role": "user", "content": "One"}]).text
    history = [{"role": "user", "content": "One"}, {"role": "assistant", "content": answer}]
    expected = guard.chat([*history, {"role": "user", "content": "Two"}])
    kinds = [json.loads(line)["kind"] for line in "".join(session.say("/trace")).splitlines()]
    assert kinds == [decision.kind for decision in expected.trace]
    assert second.rstrip("\n") == expected.text.translate(dict.fromkeys((*range(9), *range(11, 32), *range(127, 160))))
    "".join(session.say("/reset"))
    assert "".join(session.say("One")) == first


def test_a_setting_that_does_not_fit_changes_nothing(guard: Guard) -> None:
    session = Session(guard)
    "".join(session.say("/set candidates=1"))
    with pytest.raises(UserError, match="mixed_tokens"):
        "".join(session.say("/set mixed_tokens=0"))
    "".join(session.say("Hi"))
    trace = [json.loads(line) for line in "".join(session.say("/trace")).splitlines()]
    assert next(len(step["candidates"]) for step in trace if step["kind"] == "candidates") == 1
