from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from anchorlm.records import Settings, UserError

Bounds = tuple[float, float] | tuple[str, ...]
"""What a client may choose: from the first number to the second, or one of some words."""


Sampled = Literal[
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
]
"""How a client may sample."""

_SAFE: dict[Sampled, tuple[float, float]] = {"repetition_penalty": (1.0, 1.5)}
"""Bounds that hold where the operator says nothing: a prompt that lists the words of refusals, with a large penalty on
what it has said, would forbid them to the model.
"""


class ModelServing(Settings):
    """How one guard is served: the section `serve` of its recipe."""

    id: str | None = Field(
        default=None,
        pattern=r"^[\w.:/-]{1,100}$",
        description="Its name for clients. By default the name of the recipe's file.",
    )
    system: str | None = Field(
        default=None,
        min_length=1,
        description="Your own system prompt. It goes before what clients write. Judges and gates do not read it.",
    )
    limits: dict[str, Bounds] = Field(
        default_factory=dict,
        description="Knobs of the defense that a request may set. Each has the interval or the words to choose from.",
    )
    sampling: dict[Sampled, tuple[float, float]] = Field(
        default_factory=dict,
        description="Intervals from which a request may choose how it samples. Wilder sampling is less safe. By "
        "default all that the API knows, except a `repetition_penalty` outside 1 to 1.5.",
    )
    template: dict[str, tuple[bool | int | str, ...]] = Field(
        default_factory=dict,
        description="Variables of the chat template that a request may set, with `chat_template_kwargs` or "
        "`reasoning_effort`. Each has the values to choose from.",
    )
    examples: tuple[str, ...] = Field(
        default=(), description="What the playground offers to ask. By default the probes."
    )

    @classmethod
    def ids(cls, sections: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The names under which guards are served.

        Args:
            sections: The section `serve` of each recipe, by the name of its file.

        Raises:
            UserError: A section that does not fit, or two guards with the same name.
        """
        found = [cls.parse(section, where=f"the section serve of {name}").id or name for name, section in sections]
        require_distinct(found)
        return found

    @property
    def bounds(self) -> dict[Sampled, tuple[float, float]]:
        """The intervals that hold."""
        return _SAFE | self.sampling

    @field_validator("limits", "sampling")
    @classmethod
    def _in_order(cls, limits: dict[str, Bounds]) -> dict[str, Bounds]:
        for name, bounds in limits.items():
            low, high = bounds if len(bounds) == 2 else ("", "")
            if isinstance(low, float) and isinstance(high, float) and not low <= high:
                raise ValueError(f"the limits of {name} go from the lower to the higher number")
            if not bounds:
                raise ValueError(f"the limits of {name} leave nothing to choose: leave {name} out")
        return limits


def require_distinct(ids: Sequence[str]) -> None:
    """Whether each guard has a name of its own.

    Raises:
        UserError: Two have the same.
    """
    for place, id in enumerate(ids):
        if id in ids[:place]:
            raise UserError(f"Two recipes are served as {id!r}: give one of them another id in its [serve].")


class AuditSettings(Settings):
    """What is written down of every request."""

    file: Path | None = Field(
        default=None, description="JSONL file that every request is written to. Without it nothing is written."
    )
    text: bool = Field(default=False, description="Write prompts and answers themselves, not only their hashes.")
    max_bytes: int = Field(default=100_000_000, ge=1_000, description="Size at which the file is rotated.")
    keep: int = Field(default=10, ge=1, description="How many rotated files are kept. Older ones are deleted.")
    fsync: Literal["always", "second", "never"] = Field(
        default="second", description="When a line must be on the disk."
    )
    on_error: Literal["refuse", "go on"] = Field(
        default="refuse",
        description="What happens to requests if nothing can be written, for example because the disk is full.",
    )


_OWN = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)")
_OUTPUTS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


def own_output(file: Path) -> int | None:
    """The descriptor of this process that a path stands for, if it stands for one."""
    found = _OWN.fullmatch(str(file))
    return int(found[1] or found[2]) if found else _OUTPUTS.get(str(file))


def is_stream(file: Path) -> bool:
    """Whether a file is a pipe or the like, in which no one can look back."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return own_output(file) is not None
    return own_output(file) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


class ServerSettings(Settings):
    """Limits and habits of one server: the TOML file of `anchorlm serve --config`."""

    host: str = Field(default="127.0.0.1", description="Address to listen on. By default only this machine is served.")
    port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on. 0: any that is free.")
    keys: Path | None = Field(default=None, description="File of API keys, as `anchorlm serve --new-key` writes it.")
    concurrency: int = Field(default=64, ge=1, description="How many requests are answered at once.")
    queue: int = Field(default=256, ge=0, description="How many requests may wait. More get a 429.")
    deadline: float = Field(default=120.0, gt=0, description="Seconds after which a request gets a 504.")
    judge_timeout: float = Field(
        default=60.0, gt=0, description="Seconds after which a silent judge, cost or reward model counts as failed."
    )
    max_body_bytes: int = Field(default=1_000_000, ge=100, description="Size of the largest request.")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest answer that a request may ask for. By default as long as the model's context allows.",
    )
    max_choices: int = Field(default=8, ge=1, description="Most answers to one request: `n`, times prompts.")
    keep_alive: float = Field(default=10.0, gt=0, description="Seconds between comments in a stream that is silent.")
    send_timeout: float = Field(
        default=30.0, gt=0, description="Seconds after which a client that does not read its stream is left."
    )
    drain: int = Field(default=30, ge=0, description="Seconds that running answers get when the server is stopped.")
    logprobs: bool = Field(
        default=True,
        description="Give log-probabilities to clients who ask. They also help someone who searches for a jailbreak.",
    )
    scores: bool = Field(
        default=True,
        description="Tell every client the gate's score and threshold, and the grade of each candidate. They also "
        "help someone who searches for a jailbreak.",
    )
    raw_completions: bool = Field(
        default=True,
        description="Serve `/v1/completions`. Its prompts go to the model without its chat template and without "
        "control tokens.",
    )
    playground: bool = Field(default=True, description="Serve the page at `/`.")
    probe: bool = Field(default=True, description="Test every guard before the server is ready.")
    audit: AuditSettings = Field(default=AuditSettings(), description="What is written down.")

    @property
    def on_loopback(self) -> bool:
        """Whether no one but this machine can reach the server."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def private(self) -> bool:
        """Whether only anyone who is at this machine is served: keys are given to others."""
        return self.on_loopback and self.keys is None

    @property
    def patience(self) -> float:
        """Seconds that a judge gets: with less than the deadline, so its failure closes the answer before that."""
        return min(self.judge_timeout, 0.9 * self.deadline)
