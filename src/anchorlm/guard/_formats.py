from __future__ import annotations

from typing import Any

from anchorlm.defenses import Defense
from anchorlm.models import call_grammar
from anchorlm.records import Access, GenerationSettings, Request, ToolUse, UserError


def format_gap(defense: Defense) -> str | None:
    """Why a defense cannot hold its answers to a response format, in a sentence with the remedy; None where it can."""
    if defense.formats == "none":
        return (
            f"{defense.name} gives text that no response_format holds: leave response_format out, or choose another "
            "defense."
        )
    if defense.formats == "local" and Access.LOGITS not in defense.target.access:
        return (
            f"{defense.name} holds answers to a response_format only where the target is loaded here: leave "
            "response_format out, load the target with transformers, or choose a defense such as best_of_n."
        )
    return None


def check_format(defense: Defense, generation: GenerationSettings) -> None:
    """Whether a request's response format can be honored; its schema is compiled now.

    Raises:
        UserError: It cannot.
    """
    if generation.response_format is None:
        return
    if gap := format_gap(defense):
        raise UserError(gap)
    target = defense.target
    if Access.LOGITS in target.access:  # another server compiles it itself
        target.model.grammars.form(generation.response_format)


def calls_gap(defense: Defense) -> str | None:
    """Why calls cannot be held to a grammar with this defense and its target; None where they can, as far as known."""
    if defense.formats == "none" or Access.LOGITS not in defense.target.access:
        return f"{defense.name} cannot hold the calls of this target to a schema"
    form = defense.target.model.tools.form
    if form is None or form.kind not in ("object", "named"):
        return "the arguments of this model's calls are no JSON that could be held to a schema"
    return None


def held_calls(defense: Defense, request: Request, use: ToolUse) -> dict[str, Any] | None:
    """What holds an answer in which tools may be called: a format of our own, or None where nothing has to.

    Raises:
        UserError: A call must be made, or may be made in place of an answer in a response format, and no grammar of
            this model's calls can say so.
    """
    format = request.generation.response_format
    if not use.must and not use.strict and format is None:
        return None
    model, found = defense.target.model, None
    gap, tools = calls_gap(defense), model.tools
    if gap is None and tools.form is not None:
        found = call_grammar(tools.form, model.marks, model.answer_stops, use, format, several=tools.several)
        gap = "this model's calls have no mark by which they could be told from an answer"
    if found is not None:
        return found
    if use.must:
        raise UserError(f"tool_choice can only be auto or none here, because {gap}: ask for the call in your message.")
    if format is not None:
        raise UserError(f"tools and response_format do not go together here, because {gap}: send one of them.")
    return None  # the model is shown the schemas; whether it keeps to them is its own matter
