"""`anchorlm check` on models that another server runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.guard import Recipe, examine
from anchorlm.models import CausalModel


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return readable(tiny_model("llama"))


@pytest.fixture(scope="module")
def folder(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    place: Path = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture
def serve(model: CausalModel) -> Iterator[Callable[..., str]]:
    started: list[Endpoint] = []

    def start(**options: Any) -> str:
        started.append(Endpoint(model, **options))
        return started[-1].url

    yield start
    for endpoint in started:
        endpoint.stop()


def recipe(defense: str | dict[str, Any], target: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.parse(
        {"target": target, "defense": defense, "generation": {"max_new_tokens": 8}, **sections},
        where="a test",
    )


def test_what_was_found_is_named(serve: Callable[..., str], folder: str) -> None:
    url = serve(owner="vllm", form="ids")
    found = examine(recipe("undefended", {"endpoint": url, "tokenizer": folder}))
    assert found.gaps == []
    assert found.facts == [
        f"target: tiny at {url} (vllm 0.32.0, prompts go as tokens, 200 likeliest tokens, reads 256 tokens)",
        "response_format: if the target's server holds to it, which is tried when a request first asks for it",
    ]


def test_what_is_therefore_not_to_be_had_is_named(serve: Callable[..., str]) -> None:
    found = examine(recipe("undefended", {"endpoint": serve(form=None, continues="no", strict=True)}))
    assert found.gaps == []
    assert "the server writes the turns, no likeliest tokens, cannot continue an answer" in found.facts[0]
    notes = " ".join(found.notes)
    assert "top_k, min_p and repetition_penalty cannot be set" in notes
    assert "no anchor can guide it" in notes
    assert "what it does with thoughts is not known here" in notes
    assert found.thoughts == {"thoughts": "unknown", "tools": "none"}


REACH = {"inferaligner": {"artifact": "nowhere"}, "caa": {"artifact": "nowhere"}, "re_control": {"artifact": "nowhere"}}


@pytest.mark.parametrize("name", ["args", *REACH])
def test_a_defense_that_needs_more_than_a_server_gives_is_told_in_one_sentence(name: str, folder: str) -> None:
    own = {"name": name, **REACH.get(name, {})}
    found = examine(recipe(own, {"endpoint": "http://127.0.0.1:9/v1", "tokenizer": folder}))
    gaps = [gap for gap in found.gaps if "its engine offers" in gap]
    assert len(gaps) == 1
    assert gaps[0].endswith("but its engine offers logprobs: load the target with transformers.")


def test_alignbeam_without_a_tokenizer_is_told_before_its_server_is_asked() -> None:
    target = {"endpoint": "http://127.0.0.1:9/v1"}
    judge = {"kind": "refusal"}
    found = examine(recipe("alignbeam", target, anchor=target, judge=judge))
    assert found.gaps == [
        "defense: alignbeam uses the target's logprobs, but its engine offers text: give the tokenizer of the "
        "model on the server with tokenizer.",
        "defense: alignbeam uses the anchor's logprobs, but its engine offers text: give the tokenizer of the "
        "model on the server with tokenizer.",
    ]


def test_blocks_on_a_server_that_cannot_continue_are_told(serve: Callable[..., str]) -> None:
    remote = {"kind": "remote", "url": "http://127.0.0.1:9/score"}
    target = {"endpoint": serve(continues="no")}
    found = examine(recipe("inferenceguard", target, cost=remote, reward=remote))
    assert len(found.gaps) == 1
    assert "goes on with answers that have begun, and the target's server cannot" in found.gaps[0]


def test_a_server_that_is_away_is_a_gap(folder: str) -> None:
    found = examine(recipe("undefended", {"endpoint": "http://127.0.0.1:9/v1", "retries": 0}))
    assert len(found.gaps) == 1
    assert "gave no answer" in found.gaps[0]


def test_judges_and_scorers_are_asked_over_endpoints_too(serve: Callable[..., str], folder: str) -> None:
    far = {"endpoint": serve(), "tokenizer": folder}
    short = {"template": "{prompt} {response}"}
    rubric = {"kind": "rubric", "model": far, "options": short}
    found = examine(
        recipe(
            "inferenceguard", far, judge=rubric, cost=rubric, reward={**rubric, "options": {**short, "rates": "help"}}
        )
    )
    assert found.gaps == []
    assert [fact.partition(":")[0] for fact in found.facts] == ["target", "judge", "cost", "reward"]


def test_a_classifier_behind_an_endpoint_is_told() -> None:
    from anchorlm.records import UserError

    with pytest.raises(UserError, match="a classifier is loaded here"):
        recipe("best_of_n", {"endpoint": "http://h/v1"}, cost={"model": {"endpoint": "http://h/v1"}})
