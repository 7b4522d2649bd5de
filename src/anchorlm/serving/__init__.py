"""The door for clients: guards behind OpenAI's API."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.serving._errors import ApiError
    from anchorlm.serving._server import Server
    from anchorlm.serving._settings import AuditSettings, ModelServing, ServerSettings, own_output
    from anchorlm.serving.http._app import create_app
    from anchorlm.serving.http._listening import listen
    from anchorlm.serving.ops._keys import Keys, KeySettings, new_key
    from anchorlm.serving.session._model import ServedModel
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "anchorlm.serving.http._app": "create_app",
            "_errors": "ApiError",
            "anchorlm.serving.ops._keys": "Keys KeySettings new_key",
            "anchorlm.serving.http._listening": "listen",
            "anchorlm.serving.session._model": "ServedModel",
            "_server": "Server",
            "_settings": "AuditSettings ModelServing ServerSettings own_output",
        },
        moved={"anchorlm.serving": "Served=ServedModel"},
    )

__all__ = [
    "ApiError",
    "AuditSettings",
    "KeySettings",
    "Keys",
    "ModelServing",
    "ServedModel",
    "Server",
    "ServerSettings",
    "create_app",
    "listen",
    "new_key",
    "own_output",
]
