"""A response format where another server runs the target."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.records import TextDelta, UserError
from anchorlm.serving import ServedModel

TURN = [{"role": "user", "content": "How do I bake bread?"}]
SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["rye", "white"]}, "grams": {"type": "integer",
          "minimum": 0, "maximum": 99}}, "required": ["kind", "grams"], "additionalProperties": False}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "loaf", "schema": SCHEMA}}
LENGTH = {"max_new_tokens": 60}


@pytest.fixture(scope="module")
def live(start_live: Callable[..., Live], plain: Guard) -> Live:
    return start_live([ServedModel.of("plain", plain)])


@pytest.fixture(scope="module")
def careless() -> Iterator[Endpoint]:
    """Takes a response format, and does not hold to it."""
    served = Endpoint(readable(tiny_model("llama", max_position_embeddings=1024)))
    yield served
    served.stop()


@pytest.mark.parametrize(
    ("defense", "options"),
    [("undefended", {}), ("best_of_n", {"judge": lambda m, text: 0.0, "n": 2})],
)
def test_a_server_that_holds_to_it_gets_it(live: Live, defense: str, options: dict[str, Any]) -> None:
    far = Guard({"endpoint": f"{live.url}/v1", "model": "plain"}, defense, generation=LENGTH, **options)
    response = far.chat(TURN, response_format=FORMAT)
    found = json.loads(response.text)
    assert (list(found), response.finish_reason) == (["kind", "grams"], "stop")
    pieces = [one.text for one in far.stream(TURN, response_format=FORMAT) if isinstance(one, TextDelta)]
    assert json.loads("".join(pieces)).keys() == found.keys()


def test_it_says_what_the_same_model_says_here(live: Live, plain: Guard) -> None:
    far = Guard({"endpoint": f"{live.url}/v1", "model": "plain"}, generation=LENGTH)
    here = plain.chat(TURN, response_format=FORMAT, max_new_tokens=LENGTH["max_new_tokens"])
    assert far.chat(TURN, response_format=FORMAT).text == here.text


def test_a_server_that_does_not_hold_to_it_is_one_sentence(careless: Endpoint) -> None:
    far = Guard({"endpoint": careless.url}, generation=LENGTH)
    for _ in range(2):
        with pytest.raises(UserError, match="does not hold to a response_format: leave it out"):
            far.chat(TURN, response_format=FORMAT)
    assert far.chat(TURN).text


def test_a_defense_that_writes_in_pieces_holds_it_only_here(careless: Endpoint, tmp_path: Path) -> None:
    scored: dict[str, Any] = {"cost": lambda m, text: -1.0, "reward": lambda m, text: 0.0}
    careless.model.tokenizer.save_pretrained(tmp_path)
    source = {"endpoint": careless.url, "tokenizer": str(tmp_path)}
    far = Guard(source, "inferenceguard", generation=LENGTH, **scored)
    with pytest.raises(UserError, match="only where the target is loaded here"):
        far.chat(TURN, response_format=FORMAT)
