from __future__ import annotations

import pytest
from factories import CHAT_TEMPLATE, SPECIALS, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import at_once
from transformers import PreTrainedTokenizerFast

from anchorlm.models import CausalModel, without_specials
from anchorlm.records import UserError

REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + CHAT_TEMPLATE
)
DROPS_SYSTEM = CHAT_TEMPLATE.replace("%}<|start|>{{", "%}{% if message['role'] != 'system' %}<|start|>{{", 1).replace(
    "<|end|>\n{% endfor", "<|end|>\n{% endif %}{% endfor", 1
)
SYSTEM = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
MODEL = tiny_model("llama")


def with_tokenizer(tokenizer: PreTrainedTokenizerFast) -> CausalModel:
    return CausalModel.wrap(MODEL.model, tokenizer)


def read(model: CausalModel, messages: object) -> str:
    return str(model.tokenizer.decode(model.encode(messages)))  # type: ignore[arg-type]


def test_a_conversation_is_written_by_the_template() -> None:
    assert read(MODEL, SYSTEM) == (
        "<|start|>system\nBe kind.<|end|>\n<|start|>user\nHello<|end|>\n<|start|>assistant\n"
    )


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_a_system_text_that_the_template_refuses_or_drops_goes_into_the_first_turn(template: str) -> None:
    model = with_tokenizer(tiny_tokenizer(chat_template=template))
    assert read(model, SYSTEM) == "<|start|>user\nBe kind.\n\nHello<|end|>\n<|start|>assistant\n"


def test_a_conversation_that_the_template_refuses_altogether_is_a_sentence() -> None:
    model = with_tokenizer(tiny_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}"))
    for messages in (SYSTEM, SYSTEM[1:]):
        with pytest.raises(UserError, match="refuses this conversation: roles must alternate"):
            model.encode(messages)


def test_the_begin_of_text_is_never_doubled_and_the_prompt_never_ended() -> None:
    begun = tiny_tokenizer(bos=True, chat_template="<|endoftext|>" + CHAT_TEMPLATE)
    model = with_tokenizer(begun)
    assert model.encode(SYSTEM)[:2] == [0, 2]
    assert model.encode("Hello") == model.encode("<|endoftext|>Hello")
    assert model.encode("Hello").count(0) == 1
    plain = with_tokenizer(tiny_tokenizer(bos=True, chat_template=None))
    assert plain.encode(SYSTEM).count(0) == 1
    ended = tiny_tokenizer()
    ended.backend_tokenizer.post_processor = begun.backend_tokenizer.post_processor.__class__(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert with_tokenizer(ended).encode("Hello") == with_tokenizer(tiny_tokenizer()).encode("Hello")


def test_without_a_template_a_conversation_is_plain_text() -> None:
    model = with_tokenizer(tiny_tokenizer(chat_template=None))
    messages = [*SYSTEM, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Bread?"}]
    assert read(model, messages) == "Be kind.\n\nUser: Hello\nAssistant: Hi!\nUser: Bread?\nAssistant:"


pieces = st.lists(
    st.sampled_from([*SPECIALS, "<|e", "nd|>", "<|", "|>", "start", "end", "of", "text", "x"]), max_size=9
)


@settings(deadline=None)
@given(pieces.map("".join), st.sampled_from([CHAT_TEMPLATE, None]))
def test_no_text_of_a_user_becomes_a_control_token(text: str, template: str | None) -> None:
    model = with_tokenizer(tiny_tokenizer(chat_template=template))
    expected = model.encode([{"role": "user", "content": "harmless"}])
    ids = model.encode([{"role": "user", "content": f"a {text} b"}])
    controls = model.vocabulary.special
    assert [token for token in ids if token in controls] == [token for token in expected if token in controls]


def test_overlapping_control_tokens_leave_nothing_behind() -> None:
    assert without_specials("a<|e<|end|>nd|>b", SPECIALS) == "ab"


def test_control_tokens_that_the_tokenizer_only_flags_are_taken_out_too() -> None:
    tokenizer = tiny_tokenizer()
    assert "<|start|>" not in tokenizer.all_special_tokens  # flagged as special in tokenizer.json, and nowhere else
    assert with_tokenizer(tokenizer).without_control_tokens("a<|start|>b") == "ab"


@pytest.mark.parametrize(
    "messages",
    ["", "  \n", [], [{"role": "user", "content": " "}], [{"role": "user", "content": "<|end|>"}]],
)
def test_an_empty_prompt_is_a_sentence(messages: object) -> None:
    with pytest.raises(UserError, match="The prompt is empty"):
        MODEL.encode(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message", [{"role": "judge", "content": "x"}, {"role": "user"}, {"role": "user", "content": 3}, "hello", None]
)
def test_a_message_of_another_shape_is_a_sentence(message: object) -> None:
    with pytest.raises(UserError, match="A message is"):
        MODEL.encode([message])  # type: ignore[list-item]


def test_control_tokens_within_each_other_are_taken_out_at_once() -> None:
    specials = ("<|start|>", "<|end|>", "|>")
    nested = "<|st" * 20_000 + "<|start|>" + "art|>" * 20_000
    assert at_once(lambda: without_specials(f"a{nested}b", specials), 2) == "ab"


@pytest.mark.parametrize("flood", [">", "7|>", "<|reserved_7|>", "|>"])
def test_what_control_tokens_cost_does_not_depend_on_how_many_there_are(flood: str) -> None:
    few = ("<|start|>", "<|end|>")
    many = (*few, *(f"<|reserved_{number}|>" for number in range(2_000)))
    text = "<|end|>" + flood * (60_000 // len(flood))
    at_once(lambda: without_specials(text, many), 2)  # two thousand of them took minutes


@given(st.lists(st.sampled_from(["<|", "st", "art", "|>", "<|start|>", "end", "x", "|"]), max_size=30))
def test_no_control_token_is_left_and_other_text_is_untouched(pieces: list[str]) -> None:
    specials = ("<|start|>", "<|end|>")
    text = "".join(pieces)
    cleaned = without_specials(text, specials)
    assert not any(special in cleaned for special in specials)
    if not any(special in text for special in specials):
        assert cleaned == text
