from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer

from anchorlm.cli._errors import complain
from anchorlm.cli._exit import patient
from anchorlm.cli._loading import load_guard
from anchorlm.cli._recipes import parse_changes
from anchorlm.guard import Guard, Recipe
from anchorlm.records import AnchorLMError, Decision, GenerationSettings, Message, TextDelta, ThoughtDelta, UserError

HELP = """\
/trace            what the defense decided for the last answer
/set NAME=VALUE   change a knob of the defense or a generation setting, as in alpha=0.7 or max_new_tokens=100
/reset            forget the conversation; settings stay
/help             this list
/quit             leave"""

_PRINTABLE = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Takes out control characters: a model must not steer the terminal."""


class Session:
    """A conversation with a guard, line by line.

    Args:
        guard: Answers.
        dim: Thoughts that are shown are dim, for a terminal. Else they stand between marks.
    """

    def __init__(self, guard: Guard, *, dim: bool = False) -> None:
        self._guard = guard
        self._dim = dim
        self._messages: list[Message] = []
        self._trace: list[Decision] = []
        self._knobs: dict[str, Any] = {}
        self._generation: dict[str, Any] = {}

    def say(self, line: str) -> Iterator[str]:
        """What is to be shown for a line of the user, piece by piece.

        Raises:
            UserError: An unknown command, an unfit setting, or a prompt that does not fit. The conversation stays.
            DefenseError: The defense failed. The turn is forgotten.
        """
        if not line.startswith("/"):
            yield from self._answer(line)
            return
        command, _, rest = line.partition(" ")
        if command == "/trace":
            for decision in self._trace:
                yield json.dumps({"kind": decision.kind, **decision.data}, ensure_ascii=False) + "\n"
            if not self._trace:
                yield "Nothing was decided yet.\n"
        elif command == "/set":
            self._set(rest.strip())
            yield f"{rest.strip()}\n"
        elif command == "/reset":
            self._messages, self._trace = [], []
            yield "The conversation is forgotten.\n"
        elif command == "/help":
            yield HELP + "\n"
        else:
            raise UserError(f"There is no command {command!r}; /help lists them.")

    def _answer(self, line: str) -> Iterator[str]:
        messages = [*self._messages, {"role": "user", "content": line}]
        said: list[str] = []
        trace: list[Decision] = []
        thinking = False
        for event in self._guard.stream(messages, knobs=self._knobs, **self._generation):
            if isinstance(event, ThoughtDelta) and event.text:
                yield self._thought(event.text.translate(_PRINTABLE), begins=not thinking)
                thinking = True
            elif isinstance(event, TextDelta):
                if thinking:
                    yield self._between
                    thinking = False
                said.append(event.text)
                yield event.text.translate(_PRINTABLE)
            elif isinstance(event, Decision):
                trace.append(event)
        yield f"{self._between if thinking else ''}\n"  # a thought without an answer
        self._messages = [*messages, {"role": "assistant", "content": "".join(said)}]
        self._trace = trace

    @property
    def _between(self) -> str:
        return "\n\n" if self._dim else "\n</think>\n\n"

    def _thought(self, text: str, *, begins: bool) -> str:
        if self._dim:
            return typer.style(text, dim=True)
        return f"<think>\n{text}" if begins else text

    def _set(self, change: str) -> None:
        knobs, generation = dict(self._knobs), dict(self._generation)
        for name, value in parse_changes([change]).items():
            if name in GenerationSettings.model_fields:
                generation[name] = value
            else:
                knobs[name.removeprefix("defense.")] = value
        self._guard.request([{"role": "user", "content": "?"}], knobs, **generation)
        self._knobs, self._generation = knobs, generation


def run(recipe: Recipe, *, probe: bool | None = None) -> None:
    """Reads lines until the end or `/quit`, and answers each.

    Raises:
        Exit: With 2 or 1 where stdin is not a terminal and a line could not be answered.
    """
    session = Session(load_guard(recipe, probe=probe), dim=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    interactive = sys.stdin.isatty()
    if interactive:
        typer.echo("Type a message, or /help.")
    failed = 0
    while (line := _read(interactive)) is not None and line != "/quit":
        if not line:
            continue
        try:
            for piece in session.say(line):
                typer.echo(piece, nl=False)
                sys.stdout.flush()
        except AnchorLMError as error:
            complain(str(error))
            failed = max(failed, 2 if isinstance(error, UserError) else 1)
        except KeyboardInterrupt:
            if not interactive:
                raise
            patient()
            typer.echo("\n(stopped)")
    if failed and not interactive:
        raise typer.Exit(failed)


def _read(interactive: bool) -> str | None:
    """The next line. None at the end."""
    if interactive:
        try:
            return input("> ").strip()
        except EOFError:
            typer.echo()
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None
