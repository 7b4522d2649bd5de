from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, Self

from anchorlm.records import Message, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PATIENCE = 20.0
"""Seconds on the clock for one rendering, where the machine is busy. Of computing it gets fewer (`_renderer.SECONDS`).
"""

_START = 60.0
"""Seconds in which the process must be there."""

_SPARE = 2
"""Processes that are kept for the next renderings."""


class TemplateRefusedError(Exception):
    """The template says no to the conversation, in its author's words."""


class TemplateFailedError(Exception):
    """The template cannot be run."""


class EndlessTemplateError(TemplateFailedError):
    """The template took more time or memory than a rendering may."""


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    *,
    template: str | None = None,
    opens: bool = True,
    options: Mapping[str, Any] | None = None,
) -> str:
    """A conversation as a chat template writes it: as transformers renders it, but bounded in time and size.

    It runs in a process of its own. No bound inside of a program holds for every template (one multiplication can fill
    the memory), and a thread cannot be ended.

    Args:
        tokenizer: Whose template, and whose special tokens the template may write.
        turns: The conversation.
        template: Another one.
        opens: Whether the model's turn is opened at the end.
        options: More variables of the template, such as `enable_thinking`.

    Raises:
        TemplateRefusedError: The template refuses the conversation.
        TemplateFailedError: It fails, or takes too much time or memory.
        UserError: No process can be started.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    lists = {name: [str(one) for one in token] for name, token in tokenizer.special_tokens_map.items()
             if isinstance(token, list)}  # fmt: skip
    tools = (options or {}).get("tools")
    variables = {"messages": list(turns), "tools": tools, "documents": None, "add_generation_prompt": opens}
    known = {**(options or {}), **special, **lists, **variables}
    answer = _asked({"template": template or tokenizer.chat_template, "variables": known})
    if "refuses" in answer:
        raise TemplateRefusedError(answer["refuses"])
    if "endless" in answer:
        raise EndlessTemplateError(answer["endless"])
    if "fails" in answer:
        raise TemplateFailedError(answer["fails"])
    return str(answer["text"])


def template_names(template: str) -> tuple[list[str], dict[str, list[str]]]:
    """The words that a template holds, and the names that it reads, each with the texts that it is compared with.

    A template that cannot be read has none. That is said where it is used.
    """
    found: dict[str, Any] = _asked({"template": template})
    return found.get("words", []), found.get("names", {})


@contextmanager
def _watched(process: subprocess.Popen[str], seconds: float) -> Iterator[Callable[[], bool]]:
    """Waits for a process to say something, for so long. Where the system cannot, the process is killed then."""
    if process.stdout is not None and hasattr(select, "poll"):
        asked = select.poll()  # not select.select: a server has more open files than that can take
        asked.register(process.stdout, select.POLLIN | select.POLLHUP)
        yield lambda: bool(asked.poll(1000 * seconds))
        return
    timer = Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield lambda: True
    finally:
        timer.cancel()


class _Renderer:
    """One process that renders."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("_renderer.py")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                encoding="ascii",
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"Chat templates run in a process of their own, and none can be started: {error}."
            ) from None
        if self._line(_START) != "ready\n":
            self.kill()
            raise UserError("Chat templates run in a process of their own, which did not start: install jinja2.")

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer. None where there came none in time, and the process is gone."""
        line = ""
        with suppress(OSError):
            line = self._line(_PATIENCE, json.dumps(question) + "\n")
        if not line.endswith("\n"):
            self.kill()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()

    def _line(self, seconds: float, question: str = "") -> str:
        if self._process.stdin is None or self._process.stdout is None:
            return ""
        with _watched(self._process, seconds) as answers:
            self._process.stdin.write(question)
            self._process.stdin.flush()
            return self._process.stdout.readline() if answers() else ""

    @classmethod
    def idle(cls) -> Self | None:
        """One that is there already, but for this process's own."""
        with _lock:
            while _spare:
                owner, renderer = _spare.pop()
                if owner == os.getpid() and renderer._process.poll() is None:
                    return renderer  # type: ignore[return-value]
        return None

    def keep(self) -> None:
        """For the next rendering."""
        with _lock:
            if len(_spare) < _SPARE:
                _spare.append((os.getpid(), self))
                return
        self.kill()


_lock = Lock()
_spare: list[tuple[int, _Renderer]] = []


def _asked(question: Mapping[str, Any]) -> dict[str, Any]:
    renderer = _Renderer.idle() or _Renderer()
    answer = renderer.ask(question)
    if answer is None:
        return {"endless": "it takes too much time or memory"}
    if answer.pop("slow", None) is None:
        renderer.keep()
    else:
        renderer.kill()  # it has taken a step back, from which there is no way to the front
    return answer


@atexit.register
def _end() -> None:
    while _spare:
        owner, renderer = _spare.pop()
        if owner == os.getpid():
            renderer.kill()
