from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorlm.files import read_toml
from anchorlm.guard import Recipe, faults
from anchorlm.ray._settings import RayServing
from anchorlm.ray._start import tell_no_one
from anchorlm.records import UserError
from anchorlm.serving import Keys, ModelServing, ServerSettings, own_output
from anchorlm.team import code_allowed, require_leave

_SPARE = 256
"""Requests beyond those that may be answered or wait: pages and probes. Whoever comes too much gets our 429, not Ray's
own error."""

_PERIOD = 10.0
"""Seconds between two questions of Ray for a replica's health."""


def app(arguments: dict[str, Any]) -> Any:
    """A Ray Serve application: replicas of whole guards behind the API of `anchorlm serve`.

    Args:
        arguments: Those of `RayServing`, as `serve run anchorlm.ray:app recipe=guard.toml` gives them.

    Raises:
        UserError: An argument, a recipe, a setting or a file of keys that does not fit. Or a recipe names a Python
            function, and code is not allowed.
    """
    tell_no_one()
    try:
        return _built(arguments)
    except UserError as error:
        raise _plain(error) from None


def _plain(error: UserError) -> UserError:
    """The same, as what Ray tells in one sentence. It would draw its traceback around any other."""
    try:
        from anchorlm.ray._refused import RefusedError
    except ModuleNotFoundError:
        return error
    return RefusedError(str(error))


def _built(arguments: dict[str, Any]) -> Any:
    serving = RayServing.parse(arguments, where="AnchorLM on Ray")
    settings = server_settings(serving)
    recipes = [(file.stem, Recipe.load(file)) for file in serving.recipe]
    ModelServing.ids((id, recipe.serve) for id, recipe in recipes)
    for _, recipe in recipes:
        require_leave(recipe.judge, recipe.cost, recipe.reward)
        for _, why in faults(recipe):
            raise UserError(why)
    if settings.keys is not None:
        Keys.load(settings.keys)
    try:
        from ray import serve

        from anchorlm.ray._replica import Replica
    except ModuleNotFoundError as error:
        raise UserError(f"The server on Ray needs {error.name}: pip install 'anchorlm[ray]'.") from None
    options = _options(serving, settings)
    return serve.deployment(Replica).options(name="anchorlm", **options).bind(recipes, settings, serving)


def server_settings(serving: RayServing) -> ServerSettings:
    """The settings of each replica.

    Raises:
        UserError: They do not fit.
    """
    data = {} if serving.config is None else dict(read_toml(serving.config, "The server's settings"))
    # Ray's proxies listen, on all machines maybe: no one is trusted for being on this one, unless the file says so.
    data.setdefault("host", "0.0.0.0")
    if serving.keys is not None:
        data["keys"] = serving.keys
    settings = ServerSettings.parse(data, where="the server's settings")
    if settings.keys is not None:  # replicas run in folders of their own
        settings = settings.model_copy(update={"keys": Path(settings.keys).resolve()})
    if settings.audit.file is not None and own_output(settings.audit.file) is None:
        audit = settings.audit.model_copy(update={"file": Path(settings.audit.file).absolute()})
        settings = settings.model_copy(update={"audit": audit})
    return settings


def _options(serving: RayServing, settings: ServerSettings) -> Mapping[str, Any]:
    """What Ray Serve is told of the replicas."""
    if serving.max_replicas is None:
        scale: dict[str, Any] = {"num_replicas": serving.replicas}
    else:
        scale = {"autoscaling_config": {
            "min_replicas": serving.replicas,
            "max_replicas": serving.max_replicas,
            "target_ongoing_requests": serving.requests_per_replica,
        }}  # fmt: skip
    actor: dict[str, Any] = {"num_cpus": serving.cpus, "num_gpus": serving.gpus}
    if code_allowed():  # a replica is no child of this process
        actor["runtime_env"] = {"env_vars": {"ANCHORLM_ALLOW_CODE": "1"}}
    return scale | {
        "max_ongoing_requests": settings.concurrency + settings.queue + _SPARE,
        "ray_actor_options": actor,
        "health_check_period_s": _PERIOD,
        "health_check_timeout_s": settings.deadline * len(serving.recipe) + _PERIOD,  # a self-test takes that at most
        "graceful_shutdown_timeout_s": settings.drain,
    }
