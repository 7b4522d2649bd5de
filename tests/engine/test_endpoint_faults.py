"""Nothing undefended comes out, whatever a server does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from automata import automaton
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.engine import EndpointEngine, LocalEngine, runtime
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge, CallableScorer
from anchorlm.models import CausalModel, EndpointSettings
from anchorlm.records import DefenseError, GenerationSettings, Response, TextDelta, UserError

TURNS = [{"role": "user", "content": "How do I bake bread?"}]
REFUSAL = "I cannot say anything now."
LENIENT = CallableJudge(lambda messages, response: 0.0, name="lenient")
LOOK = "ask it again, and look at its log if it stays so."
BUSY = "try again later, or send fewer requests at once."
FAULTS: dict[Any, str] = {
    429: f"has too much to do (HTTP status 429: told to fail): {BUSY}",
    500: f"fails (HTTP status 500: told to fail): {BUSY}",
    503: f"fails (HTTP status 503: told to fail): {BUSY}",
    400: "does not take the request (HTTP status 400: told to fail): run `anchorlm check`.",
    401: "does not take the API key (HTTP status 401): check key_env or key_file.",
    404: "knows no such address or model (HTTP status 404: told to fail): check endpoint and model.",
    307: "sends callers elsewhere (HTTP status 307): give the final address as endpoint.",
    "cut": "gave no answer (RemoteProtocolError): check that it runs there.",
    "close": "gave no answer (RemoteProtocolError): check that it runs there.",
    "garbage": "gave no answer (what it answered is no JSON): check that it runs there.",
    "empty": f"gave an answer that cannot be used (it has not just one choice): {LOOK}",
}
"""What servers do, and what is then said of them, whatever their part is."""

READ: dict[Any, str] = {
    "sum": f"gave an answer that cannot be used (the probabilities that it names sum to more than 1): {LOOK}",
    "filter": f"gave an answer that cannot be used (it has no log-probabilities): {LOOK}",
    "no logprobs": f"gave an answer that cannot be used (it has no log-probabilities): {LOOK}",
}
"""The same of those whose tokens are mixed."""

OTHER = "The server at {} runs another model, or another version, than when the guard started: start the guard again."
ROLES = ("target", "anchor", "judge", "cost")
STATES = [(role, fault, said) for role in ROLES for fault, said in FAULTS.items()]
STATES += [(role, fault, said) for role in ("target", "anchor") for fault, said in READ.items()]
STATES += [(role, "filter", f"gave an answer that cannot be used (it ended because of 'content_filter'): {LOOK}")
           for role in ("judge", "cost")]  # fmt: skip


@dataclass
class Scene:
    """A guard with one of its models behind an endpoint.

    Attributes:
        endpoint: The server.
        guard: The guard.
        answer: What the guard lets the target say while nothing fails.
    """

    endpoint: Endpoint
    guard: Guard
    answer: str

    def under(self, fault: Any) -> tuple[Response, str]:
        """The response while the server fails, and the text of another one that is streamed."""
        self.endpoint.always = fault
        try:
            pieces = [event.text for event in self.guard.stream(TURNS) if isinstance(event, TextDelta)]
            return self.guard.chat(TURNS), "".join(pieces)
        finally:
            self.endpoint.always = None


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return readable(tiny_model("llama"))


@pytest.fixture(scope="module")
def folder(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    place: Path = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def served(
    model: CausalModel, folder: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[CausalModel, str]]:
    """The model of each role, and the folder of its tokenizer. Those who grade give the best grade to everything."""
    grader, place = automaton(["1"]).model, tmp_path_factory.mktemp("grader")
    grader.tokenizer.save_pretrained(place)
    return {role: (grader, str(place)) if role in ("judge", "cost") else (model, folder) for role in ROLES}


def settings(endpoint: Endpoint, folder: str, **more: Any) -> dict[str, Any]:
    return {"endpoint": endpoint.url, "tokenizer": folder, "retries": 1, "timeout": 20, **more}


def guarded(role: str, source: Any, local: LocalEngine) -> Guard:
    team: dict[str, Any] = {"target": local, "anchor": local, "judge": LENIENT}
    # A tiny tokenizer makes many tokens of a rubric: this one is short.
    short = {"kind": "rubric", "model": source, "options": {"template": "{prompt} {response}"}}
    options: dict[str, Any] = {"generation": {"max_new_tokens": 6}, "refusal": REFUSAL}
    if role == "cost":
        reward = CallableScorer(lambda messages, response: 0.0)
        return Guard(local, "inferenceguard", cost=short, reward=reward, beams=[2], block=4, budget=0.5, **options)
    team[role] = short if role == "judge" else source
    options |= {"mixed_tokens": 2, "candidates": 2}
    return Guard(team.pop("target"), "alignbeam", **team, **options)


@pytest.fixture(scope="module")
def scenes(model: CausalModel, served: dict[str, tuple[CausalModel, str]]) -> Iterator[dict[str, Scene]]:
    local, found = LocalEngine(model), {}
    for role, (far, place) in served.items():
        endpoint = Endpoint(far)
        guard = guarded(role, settings(endpoint, place), local)
        answer = guard.chat(TURNS)
        assert (answer.failed, answer.finish_reason) == (False, "length")
        found[role] = Scene(endpoint, guard, answer.text)
    yield found
    for scene in found.values():
        scene.endpoint.stop()


def check_refusal(response: Response) -> None:
    """Nothing but the refusal is out."""
    assert (response.text, response.token_ids, response.finish_reason) == (REFUSAL, (), "refusal")
    assert (response.scores, response.thought, response.calls) == (None, None, ())


def why(response: Response) -> str:
    """What is told of a guard that could not do its work, and nothing else of its work with it."""
    check_refusal(response)
    (told,) = [one.data for one in response.trace if one.kind == "fail_closed"]
    assert set(told) == {"why"}
    return str(told["why"])


@pytest.mark.parametrize(("role", "fault", "said"), STATES, ids=lambda value: str(value)[:12])
def test_a_server_that_fails_closes_the_guard(role: str, fault: Any, said: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[role]
    response, streamed = scene.under(fault)
    assert why(response) == f"The server at {scene.endpoint.url} {said}"
    assert streamed == REFUSAL
    assert scene.guard.chat(TURNS).text == scene.answer


@pytest.mark.parametrize(
    ("role", "said"), [("judge", "no candidate is safe: "), ("cost", "nothing within 0.500 was found: ")]
)
def test_a_grader_that_gives_no_grade_lets_nothing_through(role: str, said: str, scenes: dict[str, Scene]) -> None:
    """Nobody asks how likely the words of a grader are, and these give no grade, which counts as the worst one."""
    scene = scenes[role]
    response, streamed = scene.under("sum")
    check_refusal(response)
    assert not response.failed
    (told,) = [one.data["why"] for one in response.trace if one.kind == "fallback"]
    assert told.startswith(said)
    assert streamed == REFUSAL


@pytest.mark.parametrize("role", ROLES)
def test_a_server_that_says_nothing_is_left_in_time(
    role: str, model: CausalModel, served: dict[str, tuple[CausalModel, str]]
) -> None:
    far, place = served[role]
    endpoint = Endpoint(far)
    # Also each call at the start has to end within it, on a busy machine, too.
    guard = guarded(role, settings(endpoint, place, timeout=4), LocalEngine(model))
    endpoint.always = "hang"
    before = monotonic()
    response = guard.chat(TURNS)
    took = monotonic() - before
    endpoint.stop()
    assert why(response) == (
        f"The server at {endpoint.url} gave no whole answer within 4 seconds: raise timeout, ask for less, or check "
        "that it runs there."
    )
    assert 4 <= took < 20


@pytest.mark.parametrize("role", ROLES)
def test_what_passes_is_tried_again(role: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[role]
    for fault in (429, 500, "close", "garbage", "cut"):
        scene.endpoint.faults.append(fault)
        after = scene.guard.chat(TURNS)
        assert not scene.endpoint.faults
        assert (after.text, after.failed) == (scene.answer, False)


@pytest.mark.parametrize("other", ["model", "version"])
def test_another_model_or_version_at_the_same_address_is_not_trusted(
    other: str, model: CausalModel, folder: str
) -> None:
    endpoint = Endpoint(model, owner="vllm", form="ids")
    guard = guarded("target", settings(endpoint, folder), LocalEngine(model))
    assert not guard.chat(TURNS).failed
    if other == "model":
        endpoint.details = {"max_model_len": 128}
    else:
        endpoint.version = "0.33.0"
    endpoint.faults.append("close")  # as when a server is started again
    response = guard.chat(TURNS)
    endpoint.stop()
    assert why(response) == OTHER.format(endpoint.url)


def test_an_answer_in_the_name_of_another_model_is_not_trusted(model: CausalModel, folder: str) -> None:
    endpoint = Endpoint(model)
    far = EndpointEngine.start(EndpointSettings.parse(settings(endpoint, folder), where="a test"))

    async def write() -> str:
        async with far.open(model.encode(TURNS), room=4) as row:
            return (await row.generate(GenerationSettings(max_new_tokens=4))).text

    assert runtime().run(write())
    far._watch._signature = ("another", None)
    with pytest.raises(DefenseError) as raised:
        runtime().run(write())
    endpoint.stop()
    assert str(raised.value) == OTHER.format(endpoint.url)


def test_a_server_that_is_started_again_goes_on(model: CausalModel, folder: str) -> None:
    first = Endpoint(model)
    guard = guarded("target", settings(first, folder), LocalEngine(model))
    before = guard.chat(TURNS)
    first.stop()
    away = guard.chat(TURNS)
    second = Endpoint(model, port=first.port)
    after = guard.chat(TURNS)
    second.stop()
    assert why(away) == f"The server at {first.url} gave no answer (ConnectError): check that it runs there."
    assert not before.failed
    assert (after.text, after.failed) == (before.text, False)


def test_a_stream_that_is_cut_off_is_an_error_and_no_end(model: CausalModel, folder: str) -> None:
    endpoint = Endpoint(model)
    guard = Guard(settings(endpoint, folder), generation={"max_new_tokens": 6})
    endpoint.always = "cut stream"
    with pytest.raises(DefenseError) as raised:
        guard.chat(TURNS)
    endpoint.stop()
    assert (
        str(raised.value) == f"The server at {endpoint.url} gave an answer that cannot be used (it was cut off): {LOOK}"
    )


def test_a_client_that_leaves_ends_the_call(model: CausalModel, folder: str) -> None:
    endpoint = Endpoint(model)
    far = EndpointEngine.start(EndpointSettings.parse(settings(endpoint, folder), where="a test"))
    endpoint.always = "hang"

    async def leave() -> None:
        async with far.open(model.encode(TURNS), room=4) as row:
            before = len(endpoint.asked)
            task = asyncio.ensure_future(row.generate(GenerationSettings(max_new_tokens=4)))
            while len(endpoint.asked) == before:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    runtime().run(leave())
    assert endpoint.left.wait(10)
    endpoint.stop()


START: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"key": "right"}, {}, "does not take the API key"),
    ({}, {"model": "other"}, "does not serve 'other': give one of these as model: tiny"),
    ({"completions": False}, {"prompts": "completions"}, "does not take prompts that are written here"),
]


@pytest.mark.parametrize(("server", "asked", "told"), START, ids=lambda value: str(value)[:30])
def test_what_is_wrong_at_the_start_is_one_sentence(
    server: dict[str, Any], asked: dict[str, Any], told: str, model: CausalModel, folder: str
) -> None:
    endpoint = Endpoint(model, **server)
    with pytest.raises(UserError, match=told) as failure:
        Guard(settings(endpoint, folder, **asked))
    endpoint.stop()
    assert "\n" not in str(failure.value)


def test_without_httpx_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UserError, match=r"pip install 'anchorlm\[endpoint\]'"):
        Guard({"endpoint": "http://127.0.0.1:9/v1"})


def test_a_server_that_is_away_is_one_sentence(model: CausalModel, folder: str) -> None:
    endpoint = Endpoint(model)
    endpoint.stop()
    with pytest.raises(UserError, match="gave no answer .*: check that it runs there"):
        Guard(settings(endpoint, folder, retries=0))


def test_a_key_comes_from_a_file_or_the_environment_and_is_never_shown(
    model: CausalModel, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint(model, key="zeppelin")
    (tmp_path / "key").write_text("zeppelin\n")
    monkeypatch.setenv("SOME_KEY", "zeppelin")
    for place in ({"key_file": str(tmp_path / "key")}, {"key_env": "SOME_KEY"}):
        guard = Guard(settings(endpoint, folder, **place), generation={"max_new_tokens": 4})
        assert guard.chat(TURNS).token_ids
        model_used: Any = guard.defense.target.model
        assert "zeppelin" not in repr(model_used.settings)
    endpoint.key = "another"
    guard.on_error = "raise"
    with pytest.raises(DefenseError, match="does not take the API key") as failure:
        guard.chat(TURNS)
    assert "zeppelin" not in str(failure.value)
    endpoint.stop()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": "127.0.0.1:8000"}, "it is no address"),
    ({"endpoint": "http://me:secret@host/v1"}, "holds more than an address"),
    ({"endpoint": "http://host/v1", "dtype": "float32"}, "dtype is for a model that is loaded here"),
    ({"endpoint": "http://host/v1", "path": "x"}, "path is for a model that is loaded here"),
    ({"endpoint": "http://host/v1", "key_env": "A", "key_file": "b"}, "a key comes from one place"),
    ({"endpoint": "http://host/v1", "prompts": "completions"}, "give tokenizer"),
    ({"endpoint": "http://host/v1", "modell": "x"}, "has no setting 'modell'"),
    ({"endpoint": "http://host/v1", "key_env": "NO_SUCH_VARIABLE"}, "holds no API key"),
    ({"endpoint": "http://host/v1", "tokenizer": "./nowhere"}, "There is no tokenizer in"),
]


@pytest.mark.parametrize(
    "address",
    ["http://me:zeppelin@host/v1", "http://me:zeppelin@host:x/v1", "http://me:zep pelin@host", "http://zeppelin@host",
     "me:zeppelin@host/v1", "http://me:zep/pelin@host", "http://host/v1?key=zeppelin", "http://host/v1#zeppelin"],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UserError, match="it holds more than an address|it is no address") as failure:
        Guard({"endpoint": address})
    assert "zep" not in str(failure.value)
    assert "pelin" not in str(failure.value)
    assert "host" in str(failure.value)


@pytest.mark.parametrize(("section", "told"), BAD, ids=lambda value: str(value)[:40])
def test_a_section_that_does_not_fit_is_one_sentence(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as failure:
        Guard(section)
    assert "\n" not in str(failure.value)
