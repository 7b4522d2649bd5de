from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from ray import serve

from anchorlm.guard import Guard, Recipe
from anchorlm.ray._settings import RayServing
from anchorlm.records import ModelError
from anchorlm.serving import ModelServing, ServedModel, ServerSettings, create_app, own_output
from anchorlm.team import Started

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger("anchorlm")

_LOOK = 0.1
"""Seconds between two looks at whether the self-test is over."""


@serve.ingress()
class Replica:
    """All the guards in one process, behind the routes of `anchorlm serve`.

    Ray sends it nothing before its first `check_health` is through, which waits for the self-test.

    Args:
        recipes: The guards, by name.
        settings: Of the server.
        serving: How it is served.
    """

    def __init__(self, recipes: Sequence[tuple[str, Recipe]], settings: ServerSettings, serving: RayServing) -> None:
        self._recipes, self._serving = recipes, serving
        self._settings = own_audit(settings, serve.get_replica_context().replica_id.unique_id)
        self._tested: float | None = None
        if not settings.on_loopback and settings.keys is None:
            _log.warning("Anyone who reaches Ray's proxy may use these guards, because there are no API keys: give "
                         "keys=keys.toml.")  # fmt: skip

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of `anchorlm serve`. Its guards are loaded once it has started."""
        self._application = create_app(self._load(), self._settings)
        return self._application

    def _load(self) -> Iterator[ServedModel]:
        import torch

        if self._serving.cpus >= 1:
            torch.set_num_threads(int(self._serving.cpus))
        started: Started = []
        for id, recipe in self._recipes:
            guard = Guard.from_recipe(recipe, started=started)
            limits = ModelServing.parse(recipe.serve, where=f"the section serve of {id}")
            yield ServedModel.of(id, guard, limits, judge_timeout=self._settings.patience)

    async def check_health(self) -> None:
        """Whether the guards have passed their self-test. Ray ends a replica that says no, and starts another.

        Raises:
            AnchorLMError: They have not, or could not be loaded.
        """
        state = self._application.state.server
        while not (state.ready or state.wrong):
            await asyncio.sleep(_LOOK)
        self._tested = self._tested or monotonic()
        again = self._serving.retest
        if state.ready and again is not None and monotonic() - self._tested >= again:
            await state.test_again()
            self._tested = monotonic()
        if state.error is not None:
            raise state.error
        if state.wrong:
            raise ModelError(" ".join(state.wrong))


def own_audit(settings: ServerSettings, replica: str) -> ServerSettings:
    """The settings with an audit log of a replica's own next to the one that they name: one alone may write to it."""
    file = settings.audit.file
    if file is None or own_output(file) is not None:
        return settings
    audit = settings.audit.model_copy(update={"file": file.with_name(f"{file.stem}-{replica}{file.suffix}")})
    return settings.model_copy(update={"audit": audit})
