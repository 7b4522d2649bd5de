from __future__ import annotations

from typing import Any

import pytest

from anchorlm.records import GenerationSettings, Request, UserError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0 does not fit generation"),
        ({"temperature": 0}, "temperature = 0 does not fit generation"),
        ({"top_p": 1.5}, "top_p = 1.5 does not fit generation"),
        ({"heat": 1}, "generation has no setting 'heat'; it has: do_sample, frequency_penalty, "),
        ({"seed": "x"}, "seed = 'x' does not fit generation"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        GenerationSettings.parse(values, where="generation")
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_replaced_settings_keep_the_others_and_are_checked_as_a_whole() -> None:
    settings = GenerationSettings(top_p=0.5)
    assert settings.replace({"seed": 3}, where="x") == GenerationSettings(top_p=0.5, seed=3)
    assert settings.replace({}, where="x") is settings
    with pytest.raises(UserError):
        settings.replace({"top_p": 2}, where="x")


def test_a_raw_prompt_counts_as_one_turn_for_a_judge() -> None:
    assert Request("Hello").conversation == [{"role": "user", "content": "Hello"}]
