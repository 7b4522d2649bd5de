from __future__ import annotations

import json
import os
import random
import resource
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving.servers import Live

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VALID = json.dumps({"messages": [{"role": "user", "content": "bread"}], "max_tokens": 1, "temperature": 0.5, "n": 1})


def test_no_request_that_the_document_allows_breaks_the_server(live: Live) -> None:
    document = httpx.get(f"{live.url}/openapi.json").json()
    for schema in document["components"]["schemas"].values():
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            schema.get("properties", {}).pop(name, None)  # short answers: this is about requests
    statuses = set()
    for result in schemathesis.openapi.from_dict(document).get_all_operations():

        @settings(
            max_examples=25,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=result.ok().as_strategy())
        def answers(case: Any) -> None:
            answer = case.call(base_url=live.url, timeout=60)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (case.body, answer.text)

        answers()
    assert {200, 400} <= statuses


def test_malformed_bodies_are_told_so_and_leave_no_memory_behind(live: Live) -> None:
    generator = random.Random(0)
    with httpx.Client(base_url=live.url, timeout=60) as client:

        def send(body: bytes) -> None:
            path = generator.choice(["/v1/chat/completions", "/v1/completions"])
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code < 500, (body, answer.text)
            if answer.status_code == 200:
                assert answer.json()["anchorlm"]["decision"] != "fail_closed", (body, answer.text)
            else:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        for body in EDGES:
            send(body)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(int(os.environ.get("ANCHORLM_FUZZ", "400"))):
            send(mutated(VALID.encode(), generator))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


EDGES = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b"[" * 50_000,
    b'{"messages": NaN}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}',
    b'{"messages": [{"role": "user", "content": "\\u0000"}], "max_tokens": 1}',
    b'{"prompt": "\\udfff", "max_tokens": 1}',
    b'{"prompt": [], "max_tokens": 1}',
    b'{"prompt": "x", "seed": 1e400}',
    b'{"prompt": "x", "seed": 123456789012345678901234567890}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "max_tokens": 2147483648}',
    b'{"prompt": "x", "max_tokens": 1, "anchorlm": {"alpha": [[[]]]}}',
    b'{"prompt": "x", "max_tokens": 1, "anchorlm": {"trace": "yes"}}',
    b'{"prompt": "x", "max_tokens": 1, "stop": [""]}',
    b'{"prompt": "x", "max_tokens": 1, "model": {"$gt": ""}}',
    b"\xff\xfe\x00",
    VALID.encode("utf-16"),
]


def mutated(body: bytes, generator: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(len(data))
        kind = generator.randrange(3)
        if kind == 0:
            data[place] = generator.randrange(256)
        elif kind == 1:
            del data[place : place + generator.randint(1, 5)]
        else:
            data[place:place] = generator.choice([b"{", b"]", b'"', b"null", b"-1", b"1e999", b"\\u0000", b"\x00"])
        if not data:
            break
    return bytes(data)
