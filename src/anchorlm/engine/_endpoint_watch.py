from __future__ import annotations

from time import monotonic
from typing import Any

from anchorlm.engine._endpoint_bodies import Abilities
from anchorlm.engine._endpoint_faults import MissingError, RejectedError
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_replies import Reply
from anchorlm.models import EndpointSettings
from anchorlm.records import DefenseError

_FRESH = 10.0
"""Seconds for which a server is taken to run the same model, while its calls succeed."""
_PASSING = ("created", "permission", "modified_at", "status")
"""What servers say of a model that is another thing each time they are asked."""


async def told(caller: Caller, model: str, kind: str) -> dict[str, Any] | None:
    """What a server says of a model, and of itself. None where it does not list its models.

    Raises:
        DefenseError: It cannot be asked.
    """
    data = await caller.get("/models")
    entries = data.get("data") if isinstance(data, dict) else None
    found = next((one for one in listed(entries) if model in names(one)), None)
    known = {name: value for name, value in (found or {}).items() if name not in _PASSING}
    if kind == "vllm":
        version = await caller.get("/version", root=True)
        known["version"] = version.get("version") if isinstance(version, dict) else None
    if kind == "sglang":
        known |= await _weights(caller)
    return known


async def _weights(caller: Caller) -> dict[str, Any]:
    """Which weights SGLang holds. Its list of models says only what they are called."""
    try:
        told = await caller.get("/model_info", root=True)
    except (MissingError, RejectedError):
        return {}
    return {name: told.get(name) for name in ("model_path", "weight_version")} if isinstance(told, dict) else {}


def listed(entries: Any) -> list[dict[str, Any]]:
    """The models of a list that are described."""
    return (
        [one for one in entries if isinstance(one, dict) and isinstance(one.get("id"), str)]
        if isinstance(entries, list)
        else []
    )


def names(entry: dict[str, Any]) -> list[str]:
    """What a model is called on its server."""
    aliases = entry.get("aliases")
    return [entry["id"], *(aliases if isinstance(aliases, list) else [])]


class Watch:
    """Sees that answers come from the model that was there at the start.

    Args:
        caller: Calls the server.
        settings: Of the endpoint.
        found: The server.
        known: What it told of the model at the start. None where it does not tell.
    """

    def __init__(self, caller: Caller, settings: EndpointSettings, found: Abilities, known: Any) -> None:
        self._caller = caller
        self._settings = settings
        self._found = found
        self._known = known
        self._looked = monotonic()
        self._signature: tuple[str | None, str | None] | None = None

    async def before(self) -> None:
        """Looks at the server, if that was long ago.

        Raises:
            DefenseError: It runs another model, or cannot be asked.
        """
        if monotonic() - self._looked > _FRESH:
            await self._look()

    async def after(self, reply: Reply) -> None:
        """Looks again, where calls have failed meanwhile, and compares what the answer says of itself.

        Raises:
            DefenseError: Another model answered.
        """
        if self._caller.doubtful:
            await self._look()
        fingerprint = reply.signature[1] if self._found.kind == "llama-server" else None
        signature = (reply.signature[0], fingerprint)
        if self._signature is None:
            self._signature = signature
        elif signature != self._signature:
            raise self._changed()

    async def _look(self) -> None:
        if self._known is not None and await told(self._caller, self._found.model, self._found.kind) != self._known:
            raise self._changed()
        self._caller.doubtful = False
        self._looked = monotonic()

    def _changed(self) -> DefenseError:
        return DefenseError(
            f"The server at {self._settings.endpoint} runs another model, or another version, than when the guard "
            "started: start the guard again."
        )
