"""Servers in threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import openai

from anchorlm.serving import ServedModel, Server, ServerSettings

LIMITS = {"alpha": [0.3, 1.0], "candidates": [1, 4], "projection": ["first-token", "lookahead"]}
SECRET = "zeppelin"
"""A word of prompts that no error and no log may repeat."""


class Live:
    """A server in a thread of this process."""

    def __init__(self, served: Sequence[ServedModel], **settings: Any) -> None:
        values = {"port": 0, "probe": False, "drain": 5, **settings}
        self.server = Server(served, ServerSettings.parse(values, where="a test"))
        self.state = self.server.application.state.server
        self._clients: list[openai.OpenAI] = []
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        self.wait(lambda: self.server.started and (self.state.ready or bool(self.state.wrong)))
        self.url = self.server.address

    @staticmethod
    def wait(until: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)

    def client(self, key: str = "none", **options: Any) -> Any:
        """A client, which is closed with the server."""
        self._clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options))
        return self._clients[-1]

    def value(self, name: str, **labels: str) -> float:
        """A figure of the metrics."""
        return self.state.metrics.registry.get_sample_value(f"anchorlm_{name}", labels) or 0.0

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
