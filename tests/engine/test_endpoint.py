"""Models that another server runs, against the same weights here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.engine import EndpointEngine, LocalEngine, runtime
from anchorlm.models import CausalModel, EndpointSettings
from anchorlm.records import Access, DefenseError, GenerationSettings, UserError

TURNS = [{"role": "user", "content": "How do I bake bread?"}]
GREEDY = GenerationSettings(max_new_tokens=12)
QUESTIONS = ["How do I bake bread?", "What is 12 + 30?", "The lazy dog", "x", "fox", "Who is it?", "One", "Two"]


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return readable(tiny_model("llama"))


@pytest.fixture(scope="module")
def folder(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    place: Path = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture
def serve(model: CausalModel) -> Iterator[Callable[..., Endpoint]]:
    started: list[Endpoint] = []

    def start(**options: Any) -> Endpoint:
        started.append(Endpoint(model, **options))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()


def engine(endpoint: Endpoint, tokenizer: str | None = None, **settings: Any) -> EndpointEngine:
    given = {"endpoint": endpoint.url, "retries": 0, **({"tokenizer": tokenizer} if tokenizer else {}), **settings}
    return EndpointEngine.start(EndpointSettings.parse(given, where="a test"))


def greedy(one: Any, turns: Any = TURNS) -> tuple[str, str]:
    async def write() -> tuple[str, str]:
        async with one.open(one.model.encode(turns), room=12) as row:
            written = await row.generate(GREEDY)
            return written.text, written.finish_reason

    return runtime().run(write())


def streamed(one: Any) -> list[int]:
    async def write() -> list[int]:
        async with one.open(one.model.encode(TURNS), room=12) as row:
            return [token async for token in row.stream(GREEDY)]

    return runtime().run(write())


WAYS: list[dict[str, Any]] = [
    {"form": "chat"}, {"form": "ids", "owner": "vllm"}, {"form": "names"}, {"form": None},
    {"form": "chat", "arrays": False}, {"form": "names", "strict": True, "most": 5},
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_greedy_text_is_that_of_the_same_weights_here(
    way: dict[str, Any], serve: Callable[..., Endpoint], model: CausalModel, folder: str
) -> None:
    far, here = engine(serve(**way), folder), LocalEngine(model)
    assert greedy(far) == greedy(here)
    vocabulary = model.vocabulary
    assert vocabulary.decode(streamed(far)) == vocabulary.decode(streamed(here))
    if way["form"] in ("chat", "ids"):
        assert streamed(far) == streamed(here)


@pytest.mark.parametrize(
    "way", [{"continues": "yes"}, {"continues": "flags", "owner": "vllm"}, {"continues": "no"}], ids=str
)
def test_conversations_that_the_server_writes_are_answered_alike(
    way: dict[str, Any], serve: Callable[..., Endpoint], model: CausalModel
) -> None:
    far, here = engine(serve(completions=False, **way)), LocalEngine(model)
    assert greedy(far) == greedy(here)
    assert b"".join(map(far.model.vocabulary.token_bytes, streamed(far))).decode() == greedy(here)[0]
    assert far.found.continues == way["continues"]


@pytest.mark.parametrize("way", [{}, {"form": None}, {"completions": False}, {"form": None, "completions": False}],
                         ids=str)  # fmt: skip
def test_a_stream_tells_whether_the_answer_was_cut_however_its_pieces_come(
    way: dict[str, Any], serve: Callable[..., Endpoint], model: CausalModel, folder: str
) -> None:
    far = engine(serve(lump=3, **way), folder if way.get("completions", True) else None)
    here, ends = LocalEngine(model), set()

    async def cut(one: Any, question: str, room: int) -> bool:
        async with one.open(one.model.encode([{"role": "user", "content": question}]), room=room) as row:
            async for _ in row.stream(GenerationSettings(max_new_tokens=room)):
                pass
            return bool(row.full)

    for question in QUESTIONS:
        for room in (2, 7, 90):
            ends.add(wanted := runtime().run(cut(here, question, room)))
            assert runtime().run(cut(far, question, room)) == wanted
    assert ends == {True, False}


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[2], {"form": "chat", "completions": False}], ids=str)
def test_named_log_probabilities_are_those_of_the_model_and_the_rest_is_told(
    way: dict[str, Any], serve: Callable[..., Endpoint], model: CausalModel, folder: str
) -> None:
    far, here = engine(serve(**way), folder, top_logprobs=10), LocalEngine(model)

    async def look(one: Any) -> tuple[torch.Tensor, float]:
        async with one.open(one.model.encode(TURNS), room=4) as row:
            row.append(model.vocabulary.encode(b"The"))
            return await row.logits(), getattr(row, "unnamed", 0.0)

    (named, rest), (whole, _) = runtime().run(look(far)), runtime().run(look(here))
    exact = whole.log_softmax(-1)[: model.vocabulary.size]
    known = named.isfinite()
    assert far.access == Access.LOGPROBS
    assert 5 <= int(known.sum()) <= 11
    torch.testing.assert_close(named[known], exact[known], atol=1e-4, rtol=1e-4)
    assert rest == pytest.approx(1 - float(exact[known].exp().sum()), abs=1e-4)
    assert int(named.argmax()) == int(exact.argmax())


def test_a_server_that_hides_them_is_made_to_name_the_models_own(
    serve: Callable[..., Endpoint], model: CausalModel, folder: str
) -> None:
    server = serve()
    far, here = engine(server, folder, top_logprobs=10), LocalEngine(model)

    async def look(one: Any) -> torch.Tensor:
        async with one.open(one.model.encode(TURNS), room=1) as row:
            found: torch.Tensor = await row.logits()
            return found

    exact = runtime().run(look(here)).log_softmax(-1)[: model.vocabulary.size]
    server.hides = "unbiased"
    assert engine(server, folder, top_logprobs=10).access == Access.LOGPROBS
    named = runtime().run(look(far))
    assert int(named.isfinite().sum()) >= 5
    torch.testing.assert_close(named[named.isfinite()], exact[named.isfinite()], atol=1e-4, rtol=1e-4)
    server.hides = "biased"
    with pytest.raises(DefenseError, match="logit_bias"):
        runtime().run(look(far))
    assert engine(server, folder, top_logprobs=10).access == Access.TEXT


def test_every_request_says_how_to_sample(serve: Callable[..., Endpoint], folder: str) -> None:
    endpoint = serve()
    greedy(engine(endpoint, folder))
    for body in endpoint.bodies("/completions"):
        assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
                "seed", "max_tokens"} <= set(body)  # fmt: skip
    assert endpoint.bodies("/completions")[-1]["temperature"] == 0


HOW = {"do_sample": True, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.3, "presence_penalty": 0.5,
       "frequency_penalty": -0.5, "stop_token_ids": (9,)}  # fmt: skip


def written(one: EndpointEngine, **how: Any) -> tuple[int, ...]:
    async def write() -> tuple[int, ...]:
        async with one.open(one.model.encode(TURNS), room=12) as row:
            return (await row.generate(GenerationSettings(max_new_tokens=12, **how))).token_ids

    return runtime().run(write())


def test_all_ways_of_sampling_go_to_the_server(serve: Callable[..., Endpoint], folder: str) -> None:
    endpoint = serve(owner="vllm", form="ids")
    written(engine(endpoint, folder), **HOW)
    body = endpoint.bodies("/completions")[-1]
    told = {name: value for name, value in HOW.items() if name not in ("do_sample", "stop_token_ids")}
    assert {name: body[name] for name in told} == told
    assert 9 in body["stop_token_ids"]


def test_a_server_of_openais_takes_its_penalties_and_no_others(serve: Callable[..., Endpoint], folder: str) -> None:
    endpoint = serve(strict=True)
    far = engine(endpoint, folder)
    assert not far.found.extended
    written(far, presence_penalty=0.5)
    assert endpoint.bodies("/completions")[-1]["presence_penalty"] == 0.5
    for name, value in (("min_p", 0.1), ("top_k", 5), ("repetition_penalty", 1.2)):
        with pytest.raises(UserError, match=f"takes no {name}: leave {name} out"):
            written(far, do_sample=True, **{name: value})


@pytest.mark.parametrize("way", [{"form": "chat"}, {"form": "ids", "owner": "vllm"}, {"form": None}], ids=str)
def test_a_stop_token_ends_an_answer_from_a_server_that_knows_nothing_of_it(
    way: dict[str, Any], serve: Callable[..., Endpoint], folder: str
) -> None:
    far = engine(serve(**way), folder)
    whole = written(far)
    stop = whole[5]
    assert written(far, stop_token_ids=(stop,)) == whole[: whole.index(stop)]


def test_stop_tokens_are_refused_where_nobody_knows_the_tokens(serve: Callable[..., Endpoint]) -> None:
    with pytest.raises(UserError, match="use stop texts"):
        written(engine(serve(completions=False)), stop_token_ids=(9,))


def test_prompts_go_as_tokens_where_the_server_takes_them_and_as_text_elsewhere(
    serve: Callable[..., Endpoint], folder: str, model: CausalModel
) -> None:
    arrays, texts = serve(), serve(arrays=False)
    greedy(engine(arrays, folder))
    greedy(engine(texts, folder))
    assert arrays.bodies("/completions")[-1]["prompt"] == model.encode(TURNS)
    assert texts.bodies("/completions")[-1]["prompt"].endswith("bread?<|end|>\n<|start|>assistant\n")


def test_forks_go_on_by_themselves(serve: Callable[..., Endpoint], folder: str, model: CausalModel) -> None:
    far = engine(serve(), folder)

    async def write() -> tuple[str, str]:
        async with far.open(model.encode(TURNS), rows=2, room=8) as row:
            other = row.fork()
            other.append(model.vocabulary.encode(b"The"))
            first = await row.generate(GenerationSettings(max_new_tokens=4))
            second = await other.generate(GenerationSettings(max_new_tokens=4))
            assert other.ids[: len(row.ids) - 4] == row.ids[:-4]
            return first.text, second.text

    first, second = runtime().run(write())
    assert first != second


SPLITS: list[dict[str, Any]] = [
    {"owner": "vllm", "form": "ids", "tokenizes": True}, {"owner": "vllm", "form": "ids"}, {}, {"arrays": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def other_merges(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with the same tokens at the same ids, which splits words otherwise."""
    place: Path = tmp_path_factory.mktemp("merges")
    model.tokenizer.save_pretrained(place)
    data = json.loads((place / "tokenizer.json").read_text("utf-8"))
    data["model"]["merges"] = data["model"]["merges"][::2]
    (place / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return str(place)


@pytest.mark.parametrize("way", SPLITS, ids=str)
def test_a_tokenizer_with_the_same_tokens_and_other_merges_is_told(
    way: dict[str, Any], serve: Callable[..., Endpoint], folder: str, other_merges: str
) -> None:
    server = serve(**way)
    assert not [note for note in engine(server, folder).found.notes if "tokenizer" in note]
    with pytest.raises(UserError, match="is not the tokenizer of .* Give the tokenizer of the served model") as failure:
        engine(server, other_merges, prompts="completions")
    assert "\n" not in str(failure.value)


def test_where_the_server_writes_the_turns_other_merges_are_a_note(
    serve: Callable[..., Endpoint], folder: str, other_merges: str
) -> None:
    server = serve(completions=False)
    assert not [note for note in engine(server, folder).found.notes if "tokenizer" in note]
    (note,) = [note for note in engine(server, other_merges).found.notes if "tokenizer" in note]
    assert note.startswith("It counts other tokens than the tokenizer")


def test_a_server_that_counts_nothing_leaves_the_tokenizer_unproven(
    serve: Callable[..., Endpoint], folder: str
) -> None:
    (note,) = [note for note in engine(serve(counts=False), folder).found.notes if "tokenizer" in note]
    assert note.startswith("It does not count tokens")


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    from factories import tiny_tokenizer

    tiny_tokenizer(specials=("<|endoftext|>", "<|end|>", "<|start|>", "<|x|>", "<|y|>")).save_pretrained(tmp_path)
    endpoint = Endpoint(tiny_model("llama"))  # which names tokens of several letters
    with pytest.raises(UserError, match="is not the tokenizer|names no token|does not"):
        engine(endpoint, str(tmp_path), prompts="completions")
    endpoint.stop()


def test_activations_are_out_of_reach(serve: Callable[..., Endpoint], folder: str, model: CausalModel) -> None:
    far = engine(serve(), folder)

    async def look() -> None:
        async with far.open(model.encode(TURNS)) as row:
            await row.activations()

    with pytest.raises(UserError, match="behind an endpoint: load the model here"):
        runtime().run(look())


def test_small_seeds_stay_and_large_ones_differ() -> None:
    from anchorlm.engine._endpoint_bodies import small_seed

    large = {small_seed(7 + (place << 64)) for place in range(1, 200)}
    assert small_seed(7) == 7
    assert len(large) == 199
    assert all(0 <= seed < 2**31 for seed in large)
