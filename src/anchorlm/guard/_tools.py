"""What stands between a request that offers tools and the guard that is to answer it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anchorlm.defenses import Defense
from anchorlm.guard._calling import Calls
from anchorlm.guard._formats import check_format, held_calls
from anchorlm.models import no_tools
from anchorlm.records import MOST_STOP_IDS, Event, Finished, NoToolsError, Request, TextDelta, UserError

if TYPE_CHECKING:
    from anchorlm.guard._findings import Findings
    from anchorlm.models import CausalModel, EndpointModel


def offered(defense: Defense, request: Request, settings: Any) -> Request:
    """A request with tools as it goes to the defense: the tokens with which a call ends its turn end the answer.

    Args:
        defense: Who answers.
        request: With its tools.
        settings: Of the defense, for this request.

    Raises:
        UserError: The target's template or the defense can do nothing with tools.
    """
    if request.tools is None:
        return request
    if isinstance(request.messages, str):
        raise UserError("A raw prompt offers no tools: send a conversation, or leave tools out.")
    model = defense.target.model
    if model.tools.form is None:
        raise no_tools(model.tools)
    if not defense.vouches(settings):
        raise NoToolsError(cannot_vouch(defense.name))
    ends = model.marks.first(*model.tools.stops) - model.stop_ids
    own = request.generation.stop_token_ids
    stops = tuple(dict.fromkeys([*own, *sorted(ends)]))[:MOST_STOP_IDS]
    changes = {"stop_token_ids": stops, "response_format": held_calls(defense, request, request.tools)}
    generation = request.generation.model_copy(update=changes)
    check_format(defense, generation)
    return replace(request, generation=generation)


def cannot_vouch(name: str) -> str:
    """Why a defense takes no tools."""
    return (
        f"The defense {name} cannot vouch for calls of tools, because it does not judge an answer before it goes out: "
        "leave tools out, or take a defense that does, such as alignbeam or best_of_n."
    )


async def told_apart(events: AsyncIterator[Event], defense: Defense, request: Request) -> AsyncIterator[Event]:
    """What a guard says, with the calls of tools apart from the text."""
    model, use = defense.target.model, request.tools
    if use is None or model.tools.form is None:
        async for event in events:
            yield event
        return
    calls = Calls(model.tools.form, model.marks, use, request.stops)
    async for event in events:
        if isinstance(event, TextDelta):
            for piece in calls.take(event):
                yield piece
        elif isinstance(event, Finished):
            for one in calls.ended(event):
                yield one
        else:
            yield event


def look_at_tools(found: Findings, target: CausalModel | EndpointModel) -> None:
    """Notes what the target's chat template does with tools.

    Args:
        found: Gets it.
        target: Whose template.
    """
    if getattr(target, "templated", False):
        found.thoughts["tools"] = "none"
        return
    tools = target.tools
    found.thoughts["tools"] = tools.kind
    if tools.form is not None:
        found.thoughts["tool_calls"] = {"begin": tools.form.opening, "several": tools.several}
    if tools.kind != "none":
        found.facts.append(f"template: tools are {tools.told}")
