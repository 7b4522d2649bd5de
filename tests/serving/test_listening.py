from __future__ import annotations

import asyncio
import socket

import pytest

from anchorlm.serving import ServerSettings, listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_is_written_to_a_connection_is_sent_at_once(host: str) -> None:
    """Else the second half of each answer waits for the client's word on the first, 40 ms as a rule."""
    found: list[int] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own: socket.socket = writer.get_extra_info("socket")
        found.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect() -> int:
        servers = [await asyncio.start_server(accept, sock=one) for one in listen(ServerSettings(host=host, port=0))]
        for server in servers:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            await reader.read()
            writer.close()
            server.close()
        return len(servers)

    count = asyncio.run(connect())
    assert len(found) == count
    assert all(found)
