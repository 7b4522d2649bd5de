"""The server under load: is every response its own, how fast, and what does HTTP add?"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import count
from math import nan
from multiprocessing import get_context
from time import monotonic, perf_counter
from typing import Any, NamedTuple

import httpx

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import RubricJudge
from anchorlm.models import CausalModel
from anchorlm.serving import ServedModel, Server, ServerSettings
from anchorlm.zoo import JUDGE_TEMPLATE, items, path
from benchmarks._report import report

CLIENTS = 64
SECONDS = 180.0
ALONE = 24
TOKENS = 48
EVERY = 10
"""One request of so many is streamed."""


class Told(NamedTuple):
    """What a client got: its answer, how long that was, and the request's name."""

    text: str
    tokens: int
    id: str


class BrokenError(Exception):
    """An answer that was not whole."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every part and keeps the figures. Exits with 1 if an answer was not its own, lost, or given twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long the load lasts")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--prompts", type=int, default=CLIENTS, help="how many different prompts")
    chosen = parser.parse_args(arguments)
    target = _engine("a-medicine")
    judge = RubricJudge(_engine("b-judge"), template=JUDGE_TEMPLATE)
    generation = {"max_new_tokens": TOKENS}
    guards = {
        "undefended": Guard(target, generation=generation),
        "alignbeam": Guard(
            target, "alignbeam", anchor=_engine("b-chat"), judge=judge, generation=generation, mixed_tokens=3
        ),
    }
    server = _start(guards)
    try:
        # Clients in the server's process would take its time and be measured with it.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
            sound = _measure(server.address, guards, chosen, elsewhere)
    finally:
        server.should_exit = True
    if not sound:
        sys.exit(1)


def _measure(url: str, guards: dict[str, Guard], chosen: argparse.Namespace, elsewhere: ProcessPoolExecutor) -> bool:
    """Whether every answer was its own, and came once."""
    prompts = [item.prompt for item in items("domain", domain="medicine", partition="dev", n=chosen.prompts, seed=0)]
    rows: list[list[Any]] = []
    faults = 0
    seen: set[str] = set()
    for name, guard in guards.items():
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        alone = [guard.chat(turn).text for turn in turns]
        added = _added(url, name, guard, turns)
        one = elsewhere.submit(_load, url, name, turns, alone, clients=1, seconds=chosen.seconds / 6).result()
        load = {"clients": chosen.clients, "seconds": chosen.seconds}
        many = elsewhere.submit(_load, url, name, turns, alone, **load).result()
        ids = [*one["ids"], *many["ids"]]
        doubled = len(ids) - len(set(ids) - seen)
        seen.update(ids)
        wrong, lost = one["wrong"] + many["wrong"], one["lost"] + many["lost"]
        faults += wrong + lost + doubled
        rows.append(
            [
                name,
                1_000 * added,
                one["rate"],
                many["rate"],
                one["tokens"],
                many["tokens"],
                many["tokens"] / one["tokens"] if one["tokens"] else nan,
                many["p50"],
                many["p95"],
                len(ids),
                wrong,
                lost,
                doubled,
            ]
        )
    columns = ["defense", "HTTP adds ms", "1 client: per s", f"{chosen.clients} clients: per s"]
    columns += ["1 client: tokens per s", f"{chosen.clients} clients: tokens per s", "ratio of tokens per s"]
    report("serving", [*columns, "p50 s", "p95 s", "answers", "not their own", "lost", "doubled"], rows)
    return not faults


def _added(url: str, model: str, guard: Guard, turns: Sequence[Any]) -> float:
    """Median seconds that the server adds to the same call in Python, in pairs."""
    differences = []
    with httpx.Client(timeout=600) as client:
        for turn in (list(turns) * ALONE)[: ALONE + 2]:
            start = perf_counter()
            guard.chat(turn)
            middle = perf_counter()
            _ask(client, url, model, turn)
            differences.append(perf_counter() - middle - (middle - start))
    return statistics.median(differences[2:])


def _load(
    url: str, model: str, turns: Sequence[Any], alone: Sequence[str], *, clients: int, seconds: float
) -> dict[str, Any]:
    """Clients that ask one question after another. Each answer is compared with what its prompt gets alone.

    Every client asks all questions in turn, each from a place of its own, so that one client and many ask alike.
    """
    end = monotonic() + seconds
    times: list[float] = []
    told: list[Told] = []
    wrong, lost = [], []

    def client(number: int) -> None:
        with httpx.Client(timeout=600) as http:
            for index in count(number):
                if monotonic() >= end:
                    return
                place = index % len(turns)
                start = perf_counter()
                try:
                    answer = (_ask if index % EVERY else _listen)(http, url, model, turns[place])
                except (httpx.HTTPError, BrokenError) as error:
                    lost.append(error)
                    continue
                times.append(perf_counter() - start)
                told.append(answer)
                if answer.text != alone[place]:
                    wrong.append(place)

    start = monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    took = monotonic() - start
    return {
        "rate": len(told) / took,
        "tokens": sum(answer.tokens for answer in told) / took,
        "p50": statistics.median(times) if times else nan,
        "p95": statistics.quantiles(times, n=20)[-1] if len(times) > 1 else nan,
        "ids": [answer.id for answer in told],
        "wrong": len(wrong),
        "lost": len(lost),
    }


def _ask(client: httpx.Client, url: str, model: str, turn: Any) -> Told:
    answer = client.post(f"{url}/v1/chat/completions", json={"model": model, "messages": turn})
    answer.raise_for_status()
    data = answer.json()
    text = str(data["choices"][0]["message"]["content"])
    return Told(text, data["usage"]["completion_tokens"], data["anchorlm"]["request_id"])


def _listen(client: httpx.Client, url: str, model: str, turn: Any) -> Told:
    """The same as a stream."""
    text, tokens, id, ended = "", None, None, False
    ask = {"model": model, "messages": turn, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", f"{url}/v1/chat/completions", json=ask) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            ended = ended or line == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            text += "".join(choice["delta"].get("content", "") for choice in event.get("choices", []))
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            id = event.get("anchorlm", {}).get("request_id", id)
    if not ended or tokens is None or id is None:
        raise BrokenError
    return Told(text, tokens, id)


def _engine(name: str) -> LocalEngine:
    return LocalEngine(CausalModel.from_pretrained(path(name)))


def _start(guards: dict[str, Guard]) -> Server:
    settings = ServerSettings(port=0, probe=False, deadline=600.0)
    server = Server([ServedModel.of(name, guard) for name, guard in guards.items()], settings)
    threading.Thread(target=server.run, daemon=True).start()
    while not (server.started and server.application.state.server.ready):
        threading.Event().wait(0.05)
    return server


if __name__ == "__main__":
    main()
