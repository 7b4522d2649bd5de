"""The door for clients: guards behind OpenAI's API."""

from anchorlm.serving._app import create_app
from anchorlm.serving._errors import ApiError
from anchorlm.serving._keys import Keys, KeySettings, new_key
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
    "new_key",
    "own_output",
]
