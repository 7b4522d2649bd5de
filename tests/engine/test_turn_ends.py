from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from factories import greedy, random_ids, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm import Guard
from anchorlm.engine import LocalEngine, runtime
from anchorlm.models._ends import TurnEnds
from anchorlm.records import GenerationSettings, TextDelta, first_stop
from anchorlm.search import Diversity

TOKENIZER = tiny_tokenizer(chat_template=None)
MODEL = tiny_model(tokenizer=TOKENIZER)
STOPS = ("\nUser:", "\n\nUser:", "[INST]")
SAID = "Hello Bob!\nUser:Hello Bob!\nUser: more"
"""What a base model under the plain template was seen to write."""


@contextmanager
def writing(text: str) -> Iterator[None]:
    """The model answers "hi" with a given text whatever its weights say: its output layer adds to those logits."""
    start = len(MODEL.encode([{"role": "user", "content": "hi"}]))
    script = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    seen: dict[str, torch.Tensor | None] = {}

    def watch(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        seen["positions"] = kwargs.get("position_ids")

    def say(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        if (positions := seen["positions"]) is None:
            return output  # the engine's check at its start
        output = output.clone()
        for row, position in enumerate(positions[:, -1].tolist()):
            if 0 <= position + 1 - start < len(script):
                output[row, -1, script[position + 1 - start]] = 1e4
        return output

    hooks = (
        MODEL.model.register_forward_pre_hook(watch, with_kwargs=True),
        MODEL.model.get_output_embeddings().register_forward_hook(say),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def nothing(messages: object, response: str) -> float:
    return 0.0


DEFENSES: list[tuple[str, dict[str, Any]]] = [
    ("undefended", {}),
    ("best_of_n", {"n": 3, "judge": nothing}),
    ("best_of_n", {"n": 3, "judge": nothing, "release": "blocks", "block": 3}),
    ("beam_search", {"n": 4, "block": 3, "cost": nothing, "reward": nothing}),
    ("args", {"cost": nothing, "reward": nothing}),
    ("safe_decoding", {"mixed_tokens": 14}),
    ("alignbeam", {"alpha": 0.1, "mixed_tokens": 14, "judge": nothing}),
    ("inferenceguard", {"cost": lambda messages, text: -1.0, "reward": nothing}),
    ("inferenceguard", {"cost": lambda messages, text: -1.0, "reward": nothing, "release": "blocks", "block": 3}),
]


@pytest.mark.parametrize(("defense", "more"), DEFENSES)
def test_a_response_ends_where_it_begins_to_speak_for_the_user(defense: str, more: dict[str, Any]) -> None:
    anchor: dict[str, Any] = {"anchor": MODEL} if defense in ("safe_decoding", "alignbeam") else {}
    guard = Guard(MODEL, defense, **anchor, **more)
    with writing(SAID):
        response = guard.chat("hi", max_new_tokens=60)
        deltas = [event for event in guard.stream("hi", max_new_tokens=60) if isinstance(event, TextDelta)]
    assert (response.text, response.finish_reason) == ("Hello Bob!", "stop")
    assert TOKENIZER.decode(response.token_ids) == response.text
    assert response.usage.completion_tokens == len(response.token_ids)
    assert "".join(delta.text for delta in deltas) == response.text
    assert tuple(token for delta in deltas for token in delta.token_ids) == response.token_ids


def test_log_probabilities_stay_one_for_each_token_where_a_text_ends_a_turn() -> None:
    with writing(SAID):
        response = Guard(MODEL).chat("hi", max_new_tokens=60, logprobs=1)
    assert response.scores is not None
    assert tuple(score.token for score in response.scores) == response.token_ids


@pytest.mark.parametrize("room", [1, 11, 12, 14, 15, 16, 17])
def test_what_was_held_back_is_given_where_the_room_ends_first(room: int) -> None:
    with writing("Hello Bob!\nUser"):
        response = Guard(MODEL).chat("hi", max_new_tokens=room)
        said = "".join(e.text for e in Guard(MODEL).stream("hi", max_new_tokens=room) if isinstance(e, TextDelta))
    assert response.finish_reason == "length"
    assert len(response.token_ids) == room
    assert said == response.text


def test_a_penalized_block_ends_there_too() -> None:
    from anchorlm.search import TargetProposal

    async def write() -> tuple[bool, str]:
        async with LocalEngine(MODEL).open(MODEL.encode([{"role": "user", "content": "hi"}]), room=60) as row:
            alone = TargetProposal(row, MODEL.stop_ids)
            ended = await alone.extend(GenerationSettings(max_new_tokens=60), Diversity([[5]], 0.1))
            return ended, MODEL.vocabulary.decode(alone.response).decode()

    with writing(SAID):
        assert runtime().run(write()) == (True, "Hello Bob!")


# --- the rule against one that reads whole texts ---------------------------------------------------------------------


class Letters:
    """A vocabulary of given texts."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = list(entries)

    def token_bytes(self, token: int) -> bytes:
        return self.entries[token]

    def encode(self, data: bytes) -> list[int]:
        return [self.entries.index(bytes([byte])) for byte in data]


ENTRIES = [bytes([byte]) for byte in b"\nUser:[INST]!x "] + [
    b"!\n",
    b"\nUs",
    b"er:",
    b"!\n\nUser",
    b": [IN",
    b"",
    b"T]x",
]
VOCABULARY = Letters(ENTRIES)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, len(ENTRIES) - 1), max_size=30))
def test_tokens_as_they_come_end_where_the_whole_text_does(ids: list[int]) -> None:
    ends = TurnEnds(VOCABULARY, STOPS)  # type: ignore[arg-type]
    text = b"".join(ENTRIES[token] for token in ids).decode()
    place = first_stop(text, STOPS)
    written: list[int] = []
    least = 0
    for token in ids:
        written.append(token)
        if (found := ends.cut(written)) is not None:
            keep, rest = found
            assert keep >= least  # nothing that was settled is taken back
            written[keep:] = rest
            break
        assert ends.settled(written) >= least
        least = ends.settled(written)
    else:
        assert place is None
        return
    assert place is not None
    said = b"".join(ENTRIES[token] for token in written).decode()
    # Where a rest needs as many tokens as there were, it is left out.
    assert said == text[:place] or (not rest and text[:place].startswith(said))


def test_without_texts_nothing_is_held_back() -> None:
    ends = TurnEnds(VOCABULARY, ())  # type: ignore[arg-type]
    assert ends.settled([0, 1, 2]) == 3
    assert ends.cut([0, 1, 2, 3, 4, 5]) is None


# --- rows of the embeddings that are no token ------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "temperature": 5.0}, {"repetition_penalty": 1.3}])
def test_padding_rows_are_never_emitted_however_likely_they_are(how: dict[str, Any]) -> None:
    model = tiny_model(vocab_size=333)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[300:] *= 30
    assert model.silent_ids == tuple(range(300, 333))
    (prompt,) = random_ids(6)

    async def write() -> tuple[int, ...]:
        async with LocalEngine(model).open(prompt, room=30) as row:
            return (await row.generate(GenerationSettings(max_new_tokens=30, **how))).token_ids

    ids = runtime().run(write())
    assert ids
    assert max(ids) < 300
    if not how:
        assert list(ids) == greedy(model.model, prompt, 30)
    response = Guard(model, "best_of_n", n=3, judge=nothing).chat("hi", max_new_tokens=20, **how)
    assert all(model.vocabulary.token_bytes(token) for token in response.token_ids)
    assert response.usage.completion_tokens == len(response.token_ids)
