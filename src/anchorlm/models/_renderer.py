"""Renders chat templates in a process of its own, which may be killed. It imports nothing of this package.

A template is a program of the one who made the checkpoint. A line of JSON on standard input asks for one rendering, or
for the names that a template reads. A line on standard output answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 2.0
"""Of computing time for one rendering: thousands of turns take a tenth of it."""

SLOW = 0.1
"""Seconds of computing after which a rendering gives way to everything else on the machine."""

CHARACTERS = 16_000_000
"""Of a rendered text: many times any model's context."""

MEMORY = 1 << 29
"""Bytes of this process."""


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on, and writes what is in it."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict` for templates: the class itself would open its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates, without private names. Its own attributes are those of the template."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r} cannot be set")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Lists may grow, which transformers forbids: some templates (Kimi K2's) count calls in one. They live as long as
    one rendering.
    """

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, list):
            return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)
        return super().is_safe_attribute(obj, attr, value)


def _environment() -> Environment:
    """What transformers gives to chat templates, and lists that may grow."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


def _names(template: str) -> dict[str, Any]:
    """The names and words of a template, and the values that it compares each name with."""
    tree = _environment().parse(template)
    words = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    words |= {node.attr for node in tree.find_all(nodes.Getattr)}
    compared: dict[str, list[str]] = {node.name: [] for node in tree.find_all(nodes.Name)}
    for node in tree.find_all(nodes.Compare):
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        values = [const.value for side in sides for const in (side, *side.find_all(nodes.Const))
                  if isinstance(const, nodes.Const) and isinstance(const.value, str)]  # fmt: skip
        for side in sides:
            if isinstance(side, nodes.Name):
                compared[side.name] += values
    return {"words": sorted(words), "names": {name: sorted(set(values)) for name, values in compared.items()}}


def _answer(ask: dict[str, Any]) -> dict[str, Any]:
    try:
        if "variables" not in ask:
            return _names(ask["template"])
        text = _compiled(ask["template"]).render(**ask["variables"])
    except (TemplateSyntaxError, UndefinedError, SecurityError) as error:
        return {"fails": str(error)}
    except TemplateError as error:
        return {"refuses": str(error)}
    except MemoryError:
        return {"endless": "it needs too much memory"}
    except Exception as error:  # a template is a program, and may raise anything
        return {"fails": f"{type(error).__name__}: {error}"}
    return {"text": text} if len(text) <= CHARACTERS else {"endless": f"it writes more than {CHARACTERS:,} characters"}


def _limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # not every system can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """From here on the process dies after so many seconds of computing, whatever it is at. 0: it lives."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, SLOW if seconds else 0)


def _step_back_when_slow() -> list[bool]:
    """Lets everyone else go first once a rendering has taken `SLOW` seconds. Filled then."""
    slow: list[bool] = []

    def step_back(*_: object) -> None:
        os.nice(10)
        slow.append(True)

    if hasattr(signal, "SIGVTALRM") and hasattr(os, "nice"):
        signal.signal(signal.SIGVTALRM, step_back)
    return slow


def main() -> None:
    """Answers until no one asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slow = _step_back_when_slow()
    _limit_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        _limit_time(SECONDS)
        answer = _answer(ask)
        _limit_time(0)
        if slow:
            answer["slow"] = "yes"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
