from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import Any

from anchorlm.records import UserError
from anchorlm.serving._settings import ServerSettings

_BACKLOG = 2_048


def listen(settings: ServerSettings) -> list[socket.socket]:
    """Sockets that listen where a server is to be reached: one, or one for each kind of address that its host has.

    Raises:
        UserError: Someone else listens there, or the address is not this machine's.
    """
    host, port = settings.host, settings.port
    with ExitStack() as stack:
        found: list[socket.socket] = []
        try:
            for family, _, _, _, address in dict.fromkeys(_addresses(host, port)):
                # asyncio sends at once only where it sees that it is TCP; else an answer may wait 40 ms for the client.
                one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
                try:
                    _bind(one, (address[0], port, *address[2:]))
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL or not found:  # a name may have an address that is off
                        raise
                    continue
                port = port or one.getsockname()[1]
                found.append(one)
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port or --host, or end what "
                "listens there."
            ) from None
        stack.pop_all()
        return found


def _addresses(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def _bind(one: socket.socket, address: tuple[Any, ...]) -> None:
    if os.name == "posix":  # elsewhere it would let two servers have one port
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)
    one.listen(_BACKLOG)
    one.setblocking(False)
