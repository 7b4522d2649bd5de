"""What `examine` finds about thoughts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anchorlm.records import ThoughtSettings

if TYPE_CHECKING:
    from anchorlm.guard._findings import Findings
    from anchorlm.models import CausalModel, Channel, EndpointModel


def look_at_thoughts(found: Findings, target: CausalModel | EndpointModel, settings: ThoughtSettings) -> None:
    """Notes whether the target's chat template knows thoughts, and how they are switched.

    Args:
        found: Gets it.
        target: Whose template.
        settings: What becomes of its thoughts.
    """
    from anchorlm.models import template_names

    if getattr(target, "templated", False):
        found.thoughts = {"thoughts": "unknown"}
        found.notes.append("target: its server writes the turns, and what it does with thoughts is not known here.")
        return
    channel = target.channel()
    found.thoughts = template_data(channel)
    if channel is not None:
        found.facts.append(f"template: thoughts are {channel.told}; this guard: {settings.policy}")
    if target.options and isinstance(target.chat_template, str):
        known = template_names(target.chat_template)[1]
        for name in sorted(set(target.options) - set(known)):
            found.notes.append(f"target: its chat template does not read {name}, so it changes nothing.")


def template_data(channel: Channel | None) -> dict[str, Any]:
    """The same for machines: `thoughts` is open, optional or none. Unknown where a server writes the turns."""
    if channel is None:
        return {"thoughts": "none"}
    place = "inside a thought" if channel.opened else "behind an empty thought" if channel.shut else "before a thought"
    return {
        "thoughts": channel.kind,
        "begins": channel.opening,
        "ends": channel.closing,
        "prompt": place,
        "on": None if channel.on is None else dict(channel.on),
        "off": None if channel.off is None else dict(channel.off),
        "reasoning_effort": channel.effort,
    }
