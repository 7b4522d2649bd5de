"""What the operator of a vLLM server says, and what a request may say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anchorlm.records import UserError
from anchorlm.vllm import Asked, PluginSettings


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"anchorlm": '{"alpha": 2}'}, "alpha"),
        ({"anchorlm": '{"alhpa": 0.5}'}, "alhpa"),
        ({"anchorlm": "yes"}, "JSON object"),
        ({"anchorlm": 1}, "JSON object"),
        ({"anchorlm_alpha": 0.5}, "anchorlm_alpha"),
    ],
)
def test_bad_extra_arguments_are_one_sentence(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        Asked.read(extra)
    assert "\n" not in str(raised.value)


def test_extra_arguments_of_others_are_no_business_of_ours() -> None:
    assert Asked.read({"other": "x"}) is None
    assert Asked.read(None) is None
    assert Asked.read({"other": "x", "anchorlm": "{}"}) == Asked()
    assert Asked.read({"anchorlm": {"alpha": 0.25}}) == Asked(alpha=0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bias", {3: 5.0}), ("allowed_token_ids", [3]), ("bad_words", ["no"]), ("structured_outputs", object()),
     ("presence_penalty", 0.5), ("frequency_penalty", -1.0), ("repetition_penalty", 1.1), ("logprob_token_ids", [3]),
     ("prompt_logprob_token_ids", [[3]]),
     ("trace_decode_token_ids", [3])],
)  # fmt: skip
def test_with_a_floor_no_request_chooses_past_the_guide(name: str, value: Any) -> None:
    plain: dict[str, Any] = {"logit_bias": None, "allowed_token_ids": None, "bad_words": [], "structured_outputs": None,
             "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}  # fmt: skip
    guided = PluginSettings.parse({"anchor": "nowhere", "floor": {"alpha": 0.4}}, where="a test")
    guided.check_choice(SimpleNamespace(**plain))
    with pytest.raises(UserError, match=name) as raised:
        guided.check_choice(SimpleNamespace(**{**plain, name: value}))
    assert ("response_format" in str(raised.value)) == (name == "structured_outputs")  # as a client has written it


def test_the_environment_names_a_file_or_an_anchor_and_a_floor(tmp_path: Path) -> None:
    assert PluginSettings.from_environment({}) is None
    alone = PluginSettings.from_environment({"ANCHORLM_VLLM_ANCHOR": "some/anchor", "ANCHORLM_VLLM_FLOOR_ALPHA": "0.5"})
    assert alone is not None
    assert alone.anchor is not None
    assert (alone.anchor.path, alone.floor.alpha, alone.floor.mixed_tokens) == ("some/anchor", 0.5, 6)
    file = tmp_path / "plugin.toml"
    file.write_text('anchor = "./small"\n[mixing]\nalpha = 0.7\n[floor]\nalpha = 0.2\nmixed_tokens = 9\n', "utf-8")
    both = PluginSettings.from_environment({"ANCHORLM_VLLM": str(file), "ANCHORLM_VLLM_FLOOR_ALPHA": "0.4"})
    assert both is not None
    assert both.anchor is not None
    assert both.anchor.path == str(tmp_path / "small")
    assert (both.mixing.alpha, both.floor.alpha, both.floor.mixed_tokens) == (0.7, 0.4, 9)


@pytest.mark.parametrize("name", ["ANCHORLM_VLLM_FLOOR", "ANCHORLM_VLLM_FLOOR_APLHA", "ANCHORLM_VLLM_ANCOHR"])
def test_a_misspelt_variable_is_told_and_does_not_leave_a_server_without_a_floor(name: str) -> None:
    for known in ({}, {"ANCHORLM_VLLM_ANCHOR": "some/anchor"}):
        with pytest.raises(UserError, match=f"{name}: .*ANCHORLM_VLLM_FLOOR_ALPHA"):
            PluginSettings.from_environment({**known, name: "0.5"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[floor]\nalpha = 0.5\n", "ANCHORLM_VLLM_ANCHOR"),
        ('anchor = "x"\n[mixing]\ngate = "auto"\n', "gate"),
        ('anchor = "x"\n[mixing]\nalpha = 7\n', "alpha"),
        ('anchor = "x"\nfloor = 3\n', "floor"),
        ('anchor = "x"\n[floor]\nmixed_tokens = 9\n', "alpha above 0"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "plugin.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError, match=words):
        PluginSettings.from_environment({"ANCHORLM_VLLM": str(file)})
