from __future__ import annotations

from typing import Any

import pytest
from factories import tiny_tokenizer
from scripted import HARMONY, OPEN, QWEN

from anchorlm.models import Channel, TemplateFailedError, find_channel, rendered
from anchorlm.models._template import ChatWriter
from anchorlm.records import UserError

TOKENIZER = tiny_tokenizer(bos=True)
USER = {"role": "user", "content": "How do I bake bread?"}
THOUGHT, ANSWER = "The user wants bread.\n\nSo flour, water, salt.", "Mix flour and water.\n\nBake it."

OPENED = ("Apriel-1.6-15b-Thinker-fixed", "MiniMax-M2", "NVIDIA-Nemotron-Nano-v2", "StepFun3.5-Flash",
          "llama-cpp-deepseek-r1")  # fmt: skip
THINK = {"enable_thinking": True}
SWITCHED: dict[str, tuple[Any, Any]] = {  # how they are switched on, and off
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (THINK, None),
    "GLM-4.6": (None, {"enable_thinking": False}),
    "HuggingFaceTB-SmolLM3-3B": (None, {"enable_thinking": False}),
    "Kimi-K2-Thinking": (None, None),
    "LFM2.5-Instruct": (None, None),
    "Qwen-QwQ-32B": (THINK, None),
    "Qwen-Qwen3-0.6B": (None, {"enable_thinking": False}),
    "Qwen3.5-4B": (None, {"enable_thinking": False}),
    "Reka-Edge": (THINK, None),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (THINK, None),
    "deepseek-ai-DeepSeek-V3.1": ({"thinking": True}, None),
    "deepseek-ai-DeepSeek-V3.2": ({"thinking": True}, None),
    "deepseek-ai-DeepSeek-V4": ({"thinking": True}, None),
    "google-gemma-4-31B-it": (THINK, None),
    "ibm-granite-granite-3.3-2B-Instruct": ({"thinking": True}, None),
    "llama-cpp-rwkv-world": (THINK, {"enable_thinking": False}),
    "openai-gpt-oss-120b": (None, None),
    "poolside-Laguna-S-2.1": (None, {"enable_thinking": False}),
    "poolside-Laguna-XS-2.1": (THINK, None),
    "poolside-Laguna-XS.2": (THINK, None),
}


@pytest.fixture(scope="module")
def channels(templates: dict[str, str]) -> dict[str, Channel | None]:
    return {name: find_channel(TOKENIZER, template, {}) for name, template in templates.items()}


def test_real_templates_say_whether_thoughts_are_open_optional_or_none(channels: dict[str, Channel | None]) -> None:
    kinds = {name: "none" if found is None else found.kind for name, found in channels.items()}
    assert sorted(name for name, kind in kinds.items() if kind == "open") == sorted(OPENED)
    ways = {name: (found.on, found.off) for name, found in channels.items() if found and kinds[name] == "optional"}
    assert ways == SWITCHED


def written(template: str, channel: Channel) -> tuple[str, str] | None:
    """The prompt of a template, and what its model writes then: the template's own reasoning and answer."""
    for options in ({}, channel.on or {}):
        for field in ("reasoning_content", "thinking", "reasoning"):
            said = {"role": "assistant", "content": ANSWER, field: THOUGHT}
            prompt = rendered(TOKENIZER, [USER], template=template, options=options)
            whole = rendered(TOKENIZER, [USER, said], template=template, options=options, opens=False)
            if THOUGHT in whole and whole.startswith(prompt):
                return prompt, whole[len(prompt) : whole.index(ANSWER) + len(ANSWER)]
    return None


def test_what_real_templates_write_of_a_thought_and_an_answer_is_read_back(
    templates: dict[str, str], channels: dict[str, Channel | None]
) -> None:
    read = 0
    for name, channel in channels.items():
        if channel is None:
            continue
        found = written(templates[name], channel)
        if found is None:  # it writes no thoughts of earlier turns: its model does
            prompt = rendered(TOKENIZER, [USER], template=templates[name], options=channel.on or {})
            begin = "" if channel.inside(prompt) else channel.begin
            found = prompt, f"{begin}{THOUGHT}{channel.end}{ANSWER}"
        prompt, text = found
        assert channel.split(text, inside=channel.inside(prompt)) == (THOUGHT, ANSWER), name
        read += 1
    assert read == len(OPENED) + len(SWITCHED)


def test_real_templates_write_a_chat_as_transformers_does(templates: dict[str, str]) -> None:
    turns = [USER, {"role": "assistant", "content": "Mix flour."}, {"role": "user", "content": "And then?"}]
    for name, template in templates.items():
        try:
            theirs = TOKENIZER.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # its author wants more than a plain chat
            with pytest.raises((UserError, TemplateFailedError)):
                ChatWriter(TOKENIZER, template).write(turns)
            continue
        assert ChatWriter(TOKENIZER, template).write(turns) == theirs, name


def test_behind_a_closed_prompt_the_answer_follows_at_once(
    templates: dict[str, str], channels: dict[str, Channel | None]
) -> None:
    for name, channel in channels.items():
        if channel is None:
            continue
        for options in ({}, channel.on or {}):
            prompt = channel.closed(rendered(TOKENIZER, [USER], template=templates[name], options=options))
            assert not channel.inside(prompt), name
            assert channel.closed(prompt) == prompt or channel.empty.endswith(channel.closing.split("<")[-1]), name


OTHER = {
    "seed": ("<seed:think>", "</seed:think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "capitals": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "bars": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "halves": ("<|channel>thought\n", "<channel|>"),
    "triangles": ("◁think▷", "◁/think▷"),
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("opens", [True, False])
def test_a_channel_is_found_by_what_a_template_writes_and_not_by_a_name(name: str, opens: bool) -> None:
    begin, end = OTHER[name]
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}\n"
        f"{{% if m.reasoning_content %}}{begin}{{{{ m.reasoning_content }}}}{end}{{% endif %}}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n"
        f"{begin if opens else ''}{{% endif %}}"
    )
    channel = find_channel(TOKENIZER, template, {})
    assert channel is not None
    assert (channel.begin, channel.end) == (begin, end)
    assert channel.kind == ("open" if opens else "optional")


def test_a_thought_in_parts_of_a_turns_content_is_found() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type == 'thinking' %}[THINK]{{ p.thinking }}[/THINK]{% else %}{{ p.text }}"
        "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    channel = find_channel(TOKENIZER, template, {})
    assert channel is not None
    assert (channel.begin, channel.end) == ("[THINK]", "[/THINK]")


def test_templates_of_several_kinds_are_told_apart() -> None:
    qwen, opened, harmony = (find_channel(TOKENIZER, template, {}) for template in (QWEN, OPEN, HARMONY))
    assert qwen is not None
    assert (qwen.kind, qwen.off, qwen.opened) == ("optional", {"enable_thinking": False}, False)
    assert opened is not None
    assert (opened.kind, opened.off, opened.opened) == ("optional", {"enable_thinking": False}, True)
    assert harmony is not None
    assert harmony.begin == "<|channel|>analysis<|message|>"
    assert harmony.end == "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert find_channel(TOKENIZER, TOKENIZER.chat_template, {}) is None


def test_a_word_about_thinking_makes_no_channel() -> None:
    template = "{# think well #}You like thinking. {% for m in messages %}<user>{{ m.content }}</user>{% endfor %}"
    assert find_channel(TOKENIZER, template, {}) is None
