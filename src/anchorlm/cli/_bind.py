from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anchorlm.files import read_toml
from anchorlm.serving import Keys, ServerSettings, listen

# Nothing here imports torch: a port that is taken is told at once.


@contextmanager
def bound(config: Path | None, changes: dict[str, Any]) -> Iterator[list[socket.socket]]:
    """The sockets of a server that is still to be made, closed at the end.

    Whatever else is wrong with its settings is told first.

    Raises:
        UserError: Settings or keys that do not fit, or an address that cannot be listened on.
    """
    settings = server_settings(config, changes)
    if settings.keys is not None:
        Keys.load(settings.keys)
    sockets = listen(settings)
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def server_settings(config: Path | None, changes: dict[str, Any]) -> ServerSettings:
    """The settings of a server.

    Args:
        config: TOML file of them.
        changes: Those that were given on the command line.

    Raises:
        UserError: They do not fit.
    """
    data = {} if config is None else read_toml(config, "The server's settings")
    changes = dict(changes)
    if (audit := changes.pop("audit", None)) is not None:
        data["audit"] = {**data.get("audit", {}), "file": audit}
    return ServerSettings.parse({**data, **changes}, where="the server's settings")
