"""SGLang's completions name several tokens alike, so its likeliest tokens are asked for by its own interface."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import Endpoint
from factories import tiny_model, tiny_tokenizer
from sglang_server import Sglang, spaced_tokenizer

from anchorlm.engine import EndpointEngine, LocalEngine, runtime
from anchorlm.engine._endpoint_reading import Reader
from anchorlm.engine._endpoint_replies import Named
from anchorlm.guard import Guard
from anchorlm.models import CausalModel, EndpointModel, EndpointSettings
from anchorlm.records import Access, GenerationSettings, TokenScore, UserError

TURNS = [{"role": "user", "content": "The fox and the baker"}]
BYTES, SPACED = "byte-level", "SentencePiece"


@pytest.fixture(scope="module")
def models() -> dict[str, CausalModel]:
    """Random ones: of their tokens many are no text alone."""
    return {
        BYTES: tiny_model("llama", tokenizer=tiny_tokenizer()),
        SPACED: tiny_model("llama", tokenizer=spaced_tokenizer(), vocab_size=400),
    }


@pytest.fixture(scope="module")
def folders(models: dict[str, CausalModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    places: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in models}
    for name, model in models.items():
        model.tokenizer.save_pretrained(places[name])
    return {name: str(place) for name, place in places.items()}


@pytest.fixture
def serve(models: dict[str, CausalModel]) -> Iterator[Callable[..., Sglang]]:
    started: list[Sglang] = []

    def start(name: str = BYTES, **options: Any) -> Sglang:
        started.append(Sglang(models[name], **options))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()


def engine(endpoint: Endpoint, tokenizer: str, **settings: Any) -> EndpointEngine:
    given = {"endpoint": endpoint.url, "retries": 0, "tokenizer": tokenizer, **settings}
    return EndpointEngine.start(EndpointSettings.parse(given, where="a test"))


def step(one: Any, begun: bytes) -> tuple[torch.Tensor, float]:
    """The logits of the next token, and the mass that was not named."""

    async def look() -> tuple[torch.Tensor, float]:
        async with one.open(one.model.encode(TURNS), room=20) as row:
            row.append(one.model.vocabulary.encode(begun))
            return await row.logits(), getattr(row, "unnamed", 0.0)

    return runtime().run(look())


def check_named(named: torch.Tensor, unnamed: float, exact: torch.Tensor) -> None:
    """What is named is the model's own, and what is not named is told."""
    known = named.isfinite()
    torch.testing.assert_close(named[known], exact[known], atol=1e-4, rtol=1e-4)
    assert unnamed == pytest.approx(1 - float(exact[known].exp().sum()), abs=1e-4)


@pytest.mark.parametrize("name", [BYTES, SPACED])
def test_every_likely_token_is_named_though_others_have_its_name(
    name: str, serve: Callable[..., Sglang], models: dict[str, CausalModel], folders: dict[str, str]
) -> None:
    endpoint = serve(name)
    far, here = engine(endpoint, folders[name], top_logprobs=60), LocalEngine(models[name])
    assert far.access == Access.LOGPROBS
    for begun in (b"", b" The fox", "naïve".encode()[:3]):
        named, unnamed = step(far, begun)
        exact = step(here, begun)[0].log_softmax(-1)[: models[name].vocabulary.size]
        assert set(exact.topk(60).indices.tolist()) == set(named.isfinite().nonzero().flatten().tolist())
        check_named(named, unnamed, exact)
        likely = exact.topk(60).indices.tolist()
        named_so = [endpoint._name(token).encode() == models[name].vocabulary.token_bytes(token) for token in likely]
        assert 0 < sum(named_so) < 60  # by their names not all would be known


@pytest.mark.parametrize("name", [BYTES, SPACED])
def test_answers_come_in_the_tokens_that_the_model_took(
    name: str, serve: Callable[..., Sglang], models: dict[str, CausalModel], folders: dict[str, str]
) -> None:
    how: dict[str, Any] = {"max_new_tokens": 16, "logprobs": 4}
    far = Guard({"endpoint": serve(name).url, "tokenizer": folders[name]}, generation=how).chat(TURNS)
    here = Guard(models[name], generation=how).chat(TURNS)
    assert far.token_ids == here.token_ids
    assert far.scores
    for ours, theirs in zip(here.scores or (), far.scores, strict=True):
        check_score(ours, theirs)


def check_score(ours: TokenScore, theirs: TokenScore) -> None:
    """A token that is named alike with another is left out, and none is taken for another."""
    assert theirs.token == ours.token
    assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
    exact = dict(ours.top)
    assert set(dict(theirs.top)) <= set(exact)
    assert all(value == pytest.approx(exact[token], abs=1e-4) for token, value in theirs.top)
    assert ours.token not in exact or ours.token in dict(theirs.top)


def test_no_more_tokens_are_asked_for_than_there_are(serve: Callable[..., Sglang], folders: dict[str, str]) -> None:
    endpoint = serve(BYTES)
    far = engine(endpoint, folders[BYTES], top_logprobs=200_000)
    named, unnamed = step(far, b"The")
    assert not endpoint.over
    assert named.isfinite().all()
    assert unnamed == pytest.approx(0.0, abs=1e-4)


def test_without_its_own_interface_nothing_is_mixed_and_answers_still_come(
    serve: Callable[..., Sglang], models: dict[str, CausalModel], folders: dict[str, str]
) -> None:
    endpoint = serve(BYTES, native=False)
    far = engine(endpoint, folders[BYTES])
    assert far.access == Access.TEXT
    assert "It names no likeliest tokens by their ids: let its /generate be reached." in far.found.notes
    source = {"endpoint": endpoint.url, "tokenizer": folders[BYTES]}
    with pytest.raises(UserError, match="names no likeliest tokens") as refused:
        Guard(source, "alignbeam", anchor=models[BYTES], judge=lambda messages, response: 0.0)
    assert "\n" not in str(refused.value)
    length = {"max_new_tokens": 12}
    assert Guard(source, generation=length).chat(TURNS).text == Guard(models[BYTES], generation=length).chat(TURNS).text


@pytest.mark.parametrize("changed", ["model_path", "weight_version"])
def test_other_weights_under_the_same_name_are_not_trusted(
    changed: str, serve: Callable[..., Sglang], folders: dict[str, str]
) -> None:
    endpoint = serve(BYTES)
    guard = Guard({"endpoint": endpoint.url, "tokenizer": folders[BYTES]}, generation={"max_new_tokens": 4})
    assert not guard.chat(TURNS).failed
    endpoint.weights = {**endpoint.weights, changed: "another"}
    endpoint.faults.append("close")  # as when a server is started again
    response = guard.chat(TURNS)
    assert response.failed
    assert "runs another model, or another version" in json.dumps([dict(one.data) for one in response.trace])


@pytest.mark.parametrize("name", [BYTES, SPACED])
def test_a_server_that_only_names_texts_is_believed_no_name_of_two_tokens(
    name: str, models: dict[str, CausalModel], folders: dict[str, str]
) -> None:
    class Unknown(Sglang):
        """The same under another name, so nobody knows its own interface. Pieces of characters are hidden."""

        def _name(self, token: int) -> str:
            return str(self.model.tokenizer.decode([token]))

    endpoint = Unknown(models[name])
    endpoint.owner = "someone"
    far, here = engine(endpoint, folders[name], top_logprobs=60), LocalEngine(models[name])
    named, unnamed = step(far, b" The fox")
    check_named(named, unnamed, step(here, b" The fox")[0].log_softmax(-1)[: models[name].vocabulary.size])
    assert 5 < int(named.isfinite().sum()) < 60
    endpoint.stop()


def named(text: str) -> Named:
    """A token of which nothing but its text is known."""
    return Named(math.log(0.5), None, text.encode(), text)


def reader(folder: str, **more: Any) -> Reader:
    settings = EndpointSettings.parse({"endpoint": "http://127.0.0.1:9/v1", "tokenizer": folder}, where="a test")
    return Reader(EndpointModel.load(settings), whole=False, **more)


def test_a_space_that_is_left_out_is_no_end_of_the_answer(
    models: dict[str, CausalModel], folders: dict[str, str]
) -> None:
    tokenizer = models[SPACED].tokenizer
    assert tokenizer.decode([tokenizer.convert_tokens_to_ids("▁")]) == ""
    assert reader(folders[SPACED]).tokens(named("")) is None


def test_a_byte_in_latin_1_is_known_where_no_token_has_its_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(text="£ and £ and £\n")
    tokenizer.save_pretrained(tmp_path)
    pound, byte = tokenizer.encode("£")[0], tokenizer.convert_tokens_to_ids("é")  # byte-level's name for the byte E9
    strict = reader(str(tmp_path), latin=True)
    assert strict.tokens(named("é")) == [byte]
    assert strict.tokens(named("£")) is None  # the letter, or the byte A3
    assert reader(str(tmp_path)).tokens(named("£")) == [pound]


def test_greedy_text_is_that_of_the_same_weights_here(
    serve: Callable[..., Sglang], models: dict[str, CausalModel], folders: dict[str, str]
) -> None:
    async def write(one: Any) -> tuple[str, str]:
        async with one.open(one.model.encode(TURNS), room=12) as row:
            written = await row.generate(GenerationSettings(max_new_tokens=12))
            return written.text, written.finish_reason

    for name, model in models.items():
        far = engine(serve(name), folders[name])
        assert runtime().run(write(far)) == runtime().run(write(LocalEngine(model)))
