from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from anchorlm.records import read_toml
from anchorlm.serving import ServerSettings, listen

# Nothing here imports torch: a port that is taken is told at once.


def bind(config: Path | None, changes: dict[str, Any]) -> list[socket.socket]:
    """The sockets of a server that is still to be made.

    Raises:
        UserError: Settings that do not fit, or an address that cannot be listened on.
    """
    return listen(server_settings(config, changes))


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
