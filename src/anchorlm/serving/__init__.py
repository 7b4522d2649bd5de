"""The door for clients: guards behind OpenAI's API."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anchorlm.serving._app import create_app
    from anchorlm.serving._errors import ApiError
    from anchorlm.serving._keys import Keys, KeySettings, new_key
    from anchorlm.serving._listening import listen
    from anchorlm.serving._served import Served
    from anchorlm.serving._server import Server
    from anchorlm.serving._settings import AuditSettings, ModelServing, ServerSettings, own_output

__all__ = [
    "ApiError",
    "AuditSettings",
    "KeySettings",
    "Keys",
    "ModelServing",
    "Served",
    "Server",
    "ServerSettings",
    "create_app",
    "listen",
    "new_key",
    "own_output",
]

_ROOMS = {
    "ApiError": "_errors",
    "KeySettings": "_keys",
    "Keys": "_keys",
    "Served": "_served",
    "Server": "_server",
    "create_app": "_app",
    "listen": "_listening",
    "new_key": "_keys",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    # A server takes its port before it waits for the import of torch.
    if name in __all__:
        return getattr(import_module(f"anchorlm.serving.{_ROOMS.get(name, '_settings')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
