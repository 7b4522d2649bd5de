from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from factories import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from anchorlm import Guard
from anchorlm.models import CausalModel, _rendering
from anchorlm.models._rendering import TemplateFailedError, TemplateRefusedError, rendered
from anchorlm.records import UserError

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}"
)
HUGE = [
    "{{ 'x' * 10**10 }}",
    "{{ ['x'] * 10**9 }}",
    "{{ '%09999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x' * 17000000 }}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
]


@pytest.mark.slow
def test_a_template_that_never_ends_is_ended_and_stops_nobody_else() -> None:
    """A template with nested loops once stopped all later chats of the process."""
    bad = CausalModel.wrap(tiny_model().model, tiny_tokenizer(chat_template=ENDLESS + CHAT_TEMPLATE))
    good = tiny_model()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bad.encode, HELLO)
        for _ in range(20):
            assert good.encode([{"role": "user", "content": f"Hello {perf_counter()}"}])
        with pytest.raises(UserError, match="takes too much time or memory"):
            waiting.result(60)
    with pytest.raises(UserError, match="chat template fails"):
        Guard(bad).chat("Hello", max_new_tokens=1)
    assert good.encode(HELLO)


@pytest.mark.parametrize("template", HUGE)
def test_a_template_that_writes_without_end_is_a_failure(template: str) -> None:
    with pytest.raises(TemplateFailedError, match="memory|characters"):
        rendered(tiny_tokenizer(), HELLO, template=template)


def outcome(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], template: str, opens: bool) -> list[str]:
    """What transformers writes, and what is written here; None where it is an error."""
    try:
        theirs = render_jinja_template(
            [turns], chat_template=template, add_generation_prompt=opens, **tokenizer.special_tokens_map
        )[0][0]
    except Exception:
        theirs = None
    try:
        ours = rendered(tokenizer, turns, template=template, opens=opens)
    except (TemplateFailedError, TemplateRefusedError):
        ours = None
    return [theirs, ours]


def turns_of(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"Say {index}, ünï\n<think>a</think> b"} for index, role in enumerate(roles)]


CONVERSATIONS = [turns_of("user"), turns_of("system", "user", "assistant", "user"), turns_of("user", "assistant")]


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m|tojson(indent=2) }}{% endfor %}",
        "{% generation %}{{ messages[0].content | trim }}{% endgeneration %}\n  {% if tools is defined %}t{% endif %}",
        "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ dict(b=n.a) }}{{ bos_token is defined }}",
        "{{ strftime_now('%Y') }}{{ messages[0].__class__ }}{{ raise_exception('no') }}",
    ],
)
def test_a_rendering_is_the_one_of_transformers(template: str) -> None:
    for turns in CONVERSATIONS:
        for opens in (True, False):
            theirs, ours = outcome(tiny_tokenizer(), turns, template, opens)
            assert ours == theirs


def test_the_renderings_of_published_templates_are_those_of_transformers(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen2")
    tokenizer.bos_token = tokenizer.eos_token = "<|endoftext|>"
    files = sorted((shared_data / "templates").glob("*.jinja"))
    assert len(files) == 48
    for file in files:
        for turns in CONVERSATIONS:
            theirs, ours = outcome(tokenizer, turns, file.read_text("utf-8"), True)
            assert ours == theirs, file.stem


# --- several templates, and conversations that have no turn to answer ------------------------------------------------


def named(*names: str) -> dict[str, str]:
    return {name: f"{name}: {CHAT_TEMPLATE}" for name in names}


def test_of_several_named_templates_the_default_is_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    """vLLM #46801, lm-eval #1962."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = named("default", "tool_use", "rag")
    model = tiny_model()
    wrapped = CausalModel.wrap(model.model, tokenizer)
    assert wrapped.tokenizer.decode(wrapped.encode(HELLO)).startswith("default: ")
    assert isinstance(tokenizer.chat_template, dict)  # the caller's own stays
    tokenizer.save_pretrained(tmp_path)
    model.model.save_pretrained(tmp_path)
    for setting, expected in (({}, "default: "), ({"chat_template": "rag"}, "rag: ")):
        loaded = CausalModel.from_pretrained(tmp_path, **setting)
        assert loaded.tokenizer.decode(loaded.encode(HELLO)).startswith(expected)
    with pytest.raises(UserError, match="default, rag, tool_use.*none is called 'tools': give one of these names"):
        CausalModel.from_pretrained(tmp_path, chat_template="tools")


def test_several_named_templates_without_a_default_are_a_sentence_that_names_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = named("rag", "tool_use")
    with pytest.raises(UserError, match=r"rag, tool_use.*give one of these names as chat_template"):
        CausalModel.wrap(tiny_model().model, tokenizer)


def test_the_only_named_template_is_taken_whatever_it_is_called() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = named("chatml")
    wrapped = CausalModel.wrap(tiny_model().model, tokenizer)
    assert wrapped.tokenizer.decode(wrapped.encode(HELLO)).startswith("chatml: ")


DROPS = CHAT_TEMPLATE.replace("%}<|start|>{{", "%}{% if message['role'] == 'user' %}<|start|>{{", 1).replace(
    "<|end|>\n{% endfor", "<|end|>\n{% endif %}{% endfor", 1
)


@pytest.mark.parametrize("text", ["Be kind.", "user", "start"])
def test_a_system_text_alone_is_never_lost(text: str) -> None:
    model = CausalModel.wrap(tiny_model().model, tiny_tokenizer(chat_template=DROPS))
    assert f"\n{text}<|end|>" in model.tokenizer.decode(model.encode([{"role": "system", "content": text}]))


def test_a_turn_that_the_template_leaves_out_is_an_error() -> None:
    model = CausalModel.wrap(tiny_model().model, tiny_tokenizer(chat_template=DROPS))
    with pytest.raises(UserError, match="leaves out a part of this conversation"):
        model.encode([*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO])


@pytest.mark.parametrize("role", ["system", "assistant"])
@pytest.mark.parametrize(
    ("defense", "more"),
    [
        ("undefended", {}),
        ("best_of_n", {"n": 2, "judge": lambda messages, response: 0.0}),
        ("self_reminder", {}),
        ("alignbeam", {"judge": lambda messages, response: 0.0}),
    ],
)
def test_a_conversation_without_a_turn_of_the_user_is_a_mistake_under_every_defense(
    role: str, defense: str, more: dict[str, Any]
) -> None:
    model = tiny_model()
    guard = Guard(model, defense, anchor=model if defense == "alignbeam" else None, **more)
    with pytest.raises(UserError, match="no turn of the user"):
        guard.chat([{"role": role, "content": "Be kind."}], max_new_tokens=1)


def test_a_slow_rendering_gives_way_to_others_and_its_process_is_not_used_again() -> None:
    slow = "{% for i in range(1000) %}{% for j in range(6000) %}{% endfor %}{% endfor %}done"
    tokenizer = tiny_tokenizer()
    rendered(tokenizer, [])  # a process that waits for the next
    before = {renderer for _, renderer in _rendering._spare}
    assert rendered(tokenizer, [], template=slow) == "done"
    assert {renderer for _, renderer in _rendering._spare} < before
    assert rendered(tokenizer, [], template="quick") == "quick"
