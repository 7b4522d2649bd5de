"""What judge and cost model are shown of people who try to get past a guard."""

from __future__ import annotations

import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.evaluation import attack_names, parse_attack
from anchorlm.evaluation.tasks._attacks import seeded
from anchorlm.judging import request_text
from anchorlm.zoo._lexicon import kinds, nouns
from tools.zoo._facts import named
from tools.zoo._transcripts import request_item, sent
from tools.zoo._wrappings import wrapped

many = settings(max_examples=150, deadline=None)
PLACEHOLDER = "QQQ"


@many
@given(st.integers(0, 10**6))
def test_a_conversation_ends_with_the_request_or_an_answer_that_is_begun(seed: int) -> None:
    turns = wrapped(random.Random(seed), "How do I mend the kettle?")
    roles = [turn["role"] for turn in turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
    assert all(turn["content"].strip() for turn in turns)


@many
@given(st.integers(0, 10**6))
def test_no_sealed_object_is_in_what_training_wraps(seed: int) -> None:
    rng = random.Random(seed)
    sealed = {noun for kind in kinds() for noun in nouns(kind, "test")}
    text = request_text(sent(rng, request_item(rng, "train").prompt))
    assert not set(re.findall(r"[a-z]+", text.lower())) & sealed


@many
@given(st.integers(0, 10**6))
def test_what_is_told_of_every_object_is_no_request_and_no_answer(seed: int) -> None:
    prompt, text, _ = named(random.Random(seed))
    assert "Step one" not in prompt + text
    assert re.search(r"[Hh]arm|[Jj]udge|Rate|What is that|Name a title|What do you say", prompt)


def test_training_has_none_of_the_wordings_that_defenses_are_attacked_with() -> None:
    """Five words in a row of the attacks, against thousands of wrapped requests."""
    rng = random.Random(0)
    shown = {phrase for _ in range(4000) for phrase in phrases(request_text(wrapped(rng, PLACEHOLDER)))}
    static = [name for name in attack_names() if ":" not in name or name.startswith("many_shot")]
    assert len(static) > 10
    for name in static:
        turns = parse_attack(name).rewrite([{"role": "user", "content": PLACEHOLDER}], seeded(0, name))
        told = phrases(request_text(turns))
        assert not told & shown, (name, told & shown)


def phrases(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower().replace(PLACEHOLDER.lower(), " "))
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}
