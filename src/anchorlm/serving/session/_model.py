from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from anchorlm.guard import Guard
from anchorlm.records import (
    Messages,
    NoToolsError,
    Request,
    TooLongError,
    UserError,
    as_messages,
    calls_of,
    turn_text,
)
from anchorlm.serving._errors import ApiError, without_paths
from anchorlm.serving._settings import Bounds, ModelServing
from anchorlm.serving.session._pictures import pictures
from anchorlm.serving.session._variables import allowed_options, unshown
from anchorlm.team import Team

TRACE = "trace"
"""What a request says next to knobs: that its operator wants to see everything."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A guard as clients see it.

    Attributes:
        id: Its name.
        guard: Raises what its defense could not do: refusing is then the server's, which says so.
        serving: What clients may change.
        roles: Names of models, which may be paths, and what clients are told instead.
        patience: Seconds after which an anchor, a judge or a scorer that says nothing has failed.
    """

    id: str
    guard: Guard
    serving: ModelServing = field(default_factory=ModelServing)
    roles: Mapping[str, str] = field(default_factory=dict)
    patience: float | None = None

    @classmethod
    def of(
        cls, id: str, guard: Guard, serving: ModelServing | None = None, *, judge_timeout: float = 60.0
    ) -> ServedModel:
        """Prepares a guard for serving; the one that is given stays as it is.

        Args:
            id: Its name for clients, unless `serving` has one.
            guard: The guard.
            serving: What clients may change: nothing by default.
            judge_timeout: Seconds after which its judge, cost or reward model has failed.

        Raises:
            UserError: Limits of a knob that the defense does not have, or that exclude the guard's own setting.
        """
        serving = serving or ModelServing()
        defense = guard.defense
        _check(defense.name, defense.settings.model_dump(), serving.limits)
        own = copy.copy(guard)
        own.on_error, own.system = "raise", serving.system or guard.system
        return cls(serving.id or id, own, serving, _roles(defense.team), judge_timeout)

    @property
    def names(self) -> tuple[str, str]:
        """Its own, and that of its defense."""
        return self.id, self.guard.defense.name

    @property
    def refusal(self) -> str:
        """What is said where the defense could not do its work."""
        return str(self.guard.defense.settings.refusal)

    def public(self, text: str) -> str:
        """A sentence of ours, or of a defense that is a plug-in, without the names of models and without paths."""
        for name in sorted(self.roles, key=len, reverse=True):
            text = text.replace(name, self.roles[name])
        return without_paths(text)

    def unfit(self, error: UserError, prompt: Messages | str) -> ApiError:
        """What a client is told of a prompt that its guard does not take."""
        code = "context_length_exceeded" if isinstance(error, TooLongError) else "invalid_prompt"
        return ApiError(400, self.public(str(error)), param=_param(prompt), code=code)

    def check_length(self, request: Request) -> None:
        """Finds a prompt's tokens, which the model remembers.

        Raises:
            ApiError: 400, they are more than the model's context.
        """
        prompt = request.messages
        model = self.guard.defense.target.model
        try:
            # Without a look at its tokens, if even the longest ones would be too many.
            least = len(_text(prompt).encode()) // model.vocabulary.longest
            known = least >= model.context_length or pictures(prompt)  # what images are read as takes a forward
            count = least if known else len(model.encode(request.prompt, request.options))
        except UserError as error:
            raise self.unfit(error, prompt) from None
        if count >= model.context_length:
            raise ApiError(
                400, f"The prompt has {count} tokens or more, but the model reads {model.context_length} with its "
                "answer: shorten it.", param=_param(prompt), code="context_length_exceeded",
            )  # fmt: skip

    def check_sampling(self, **asked: float | None) -> None:
        """Whether a request may sample as it asks to.

        Raises:
            ApiError: 400, it is out of the operator's bounds.
        """
        for name, bounds in self.serving.bounds.items():
            value = asked.get(name)
            if value is not None and not _within(value, bounds):
                raise ApiError(
                    400, f"{name} = {value:g} is beyond what this server allows: choose {_words(bounds)}.", param=name,
                    code="out_of_bounds",
                )  # fmt: skip

    def request(
        self,
        messages: Messages | str,
        knobs: Mapping[str, Any],
        generation: Mapping[str, Any],
        stops: Sequence[str] = (),
        template: Mapping[str, Any] | None = None,
        *,
        silent: bool = False,
        offer: Mapping[str, Any] | None = None,
    ) -> Request:
        """A request with knobs, and variables of the chat template, that its client may set.

        Raises:
            ApiError: 400, a knob that is not the client's to set, or a value out of the operator's bounds.
        """
        for name, value in knobs.items():
            if name not in self.serving.limits:
                allowed = ", ".join(sorted(self.serving.limits)) or "none"
                raise ApiError(
                    400, f"{name!r} cannot be set by requests to {self.id}; what can: {allowed}.",
                    param=f"anchorlm.{name}", code="knob_not_allowed",
                )  # fmt: skip
            bounds = self.serving.limits[name]
            if not _within(value, bounds):
                raise ApiError(
                    400, f"{name} = {_shown(value)} is beyond what this server allows: choose {_words(bounds)}.",
                    param=f"anchorlm.{name}", code="knob_out_of_bounds",
                )  # fmt: skip
        try:
            (_text(messages) + _tools_text(messages, offer)).encode()
        except UnicodeEncodeError:
            raise ApiError(
                400, "The prompt is not valid Unicode: half of a surrogate pair stands alone.", param=_param(messages),
                code="invalid_prompt",
            ) from None  # fmt: skip
        try:
            options = allowed_options(self.id, self.guard.defense.target.model, self.serving.template, template or {})
            request = self.guard.request(messages, knobs, options, **(offer or {}), **generation)
            request = replace(request, stops=tuple(stops), patience=self.patience)
            return replace(request, thoughts=unshown(request.thoughts)) if silent else request
        except NoToolsError as error:
            raise ApiError(400, self.public(str(error)), param="tools", code="unsupported_parameter") from None
        except UserError as error:
            param = next((name for name in _NAMED if name in str(error)), None)
            raise ApiError(400, self.public(str(error)), param=param, code="invalid_value") from None


_NAMED = ("tool_choice", "response_format")
"""Parameters that an error may speak of."""


def _text(prompt: Messages | str) -> str:
    return "".join(map(turn_text, as_messages(prompt)))


def _tools_text(prompt: Messages | str, offer: Mapping[str, Any] | None) -> str:
    """All that a request says of tools."""
    calls = [] if isinstance(prompt, str) else [calls_of(turn) for turn in prompt if _has_calls(turn)]
    return json.dumps([calls, (offer or {}).get("tools")], ensure_ascii=False)


def _has_calls(turn: Any) -> bool:
    """Whether all its calls are such; others are told of where they are read."""
    return all(isinstance(call.get("function"), Mapping) and "name" in call["function"]
               for call in turn.get("tool_calls") or ())  # fmt: skip


def _param(prompt: Messages | str) -> str:
    """Where a prompt stands in a request."""
    return "prompt" if isinstance(prompt, str) else "messages"


def _roles(team: Team) -> dict[str, str]:
    """What is said instead of names that may be paths."""
    named: list[tuple[str, str]] = [(team.target.model.name, "the target")]
    if team.anchor is not None:
        named.append((team.anchor.model.name, "the anchor"))
    for role, scorer in (("judge", team.judge), ("cost model", team.cost), ("reward model", team.reward)):
        if scorer is not None:
            named += [(scorer.name, f"the {role}"), (scorer.name.partition(":")[2], f"the {role}'s model")]
    return {name: role for name, role in reversed(named) if "/" in name or "\\" in name}


def _check(defense: str, settings: Mapping[str, Any], limits: Mapping[str, Bounds]) -> None:
    for name, bounds in limits.items():
        if name not in settings or name == TRACE:
            raise UserError(
                f"serve.limits names {name!r}, which is no knob of {defense}; it has: {', '.join(sorted(settings))}."
            )
        if settings[name] is not None and not _within(settings[name], bounds):
            raise UserError(
                f"serve.limits of {name} are {_words(bounds)}, but the recipe's own {name} is {settings[name]!r}: "
                "widen the limits, or change the recipe."
            )


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _within(value: Any, bounds: Bounds) -> bool:
    low, high = bounds[0], bounds[-1]
    if isinstance(low, float) and isinstance(high, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return value in bounds


def _words(bounds: Bounds) -> str:
    low, high = bounds[0], bounds[-1]
    if isinstance(low, float) and isinstance(high, float):
        return f"from {low:g} to {high:g}"
    return "one of " + ", ".join(map(str, bounds))
