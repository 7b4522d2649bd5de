"""Serves a guard behind OpenAI's API, and asks it over HTTP. Needs `pip install 'anchorlm[serve]'`.

python examples/serve_and_ask.py
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

from anchorlm import Guard
from anchorlm.serving import ServedModel, Server, ServerSettings
from anchorlm.zoo import path


@contextmanager
def serving(guard: Guard) -> Iterator[str]:
    """A server in a thread, on a free port. On the command line this is `anchorlm serve my.toml`."""
    server = Server([ServedModel.of("bank", guard)], ServerSettings(port=0, probe=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.address
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, question: str) -> dict[str, Any]:
    """One request, as any client of OpenAI's API sends it."""
    body = {"model": "bank", "messages": [{"role": "user", "content": question}]}
    request = Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def ready(address: str) -> bool:
    """Whether every guard is loaded."""
    try:
        with urlopen(f"{address}/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> None:
    """Starts, asks once, and ends."""
    guard = Guard(path("a-finance"), "self_reminder", generation={"max_new_tokens": 48})
    with serving(guard) as address:
        while not ready(address):
            time.sleep(0.05)
        answer = ask(address, "How do I bake bread?")
        print(f"answer:  {answer['choices'][0]['message']['content']}\ndecided: {answer['anchorlm']['decision']}")


if __name__ == "__main__":
    main()
