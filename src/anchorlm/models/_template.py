from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError, UndefinedError
from transformers import PreTrainedTokenizerBase

from anchorlm.records import Message, Messages, UserError, turn_text

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""What a conversation looks like to a model whose tokenizer brings no chat template."""

_ROLES = ("system", "user", "assistant")


def plain_turns(messages: Messages, specials: tuple[str, ...]) -> list[dict[str, str]]:
    """The turns of a conversation of texts, without the model's control tokens.

    Taken out, nobody can write a turn in another's name with them.

    Raises:
        UserError: A message without a known role or text, no message at all, or an empty last turn of the user.
    """
    turns = [_checked(message, specials) for message in messages]
    if not turns or not turns[-1]["content"].strip():
        raise UserError("The prompt is empty: give at least one message with some text.")
    return turns


def render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> list[int]:
    """The token ids of the turns of a conversation, ready for the model's answer.

    A template without a system role gets the system text at the head of the first user turn.

    Raises:
        UserError: The template refuses the conversation, or fails.
    """
    if tokenizer.chat_template is None:
        # A plain text has no begin-of-text of its own: the tokenizer adds what the model was trained with.
        return encode_text(tokenizer, _apply(tokenizer, turns, PLAIN_TEMPLATE))
    text = _with_system(tokenizer, turns)
    words = turns[-1]["content"].strip()
    if words not in text:
        # A template of a model that sees knows contents as lists of parts, and writes nothing of a text.
        parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        with suppress(TemplateError, TypeError):
            other = _apply(tokenizer, parts)
            text = other if words in other else text
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def response_lead(tokenizer: PreTrainedTokenizerBase, text_of: Callable[[list[int]], bytes]) -> bytes:
    """The white space with which this model's responses open: b" " for many SentencePiece models, else b"".

    It is what stands between the opened turn and the words of an answer that the template has written itself.

    Args:
        tokenizer: With its template.
        text_of: The bytes of token ids.
    """
    turns, answer = [{"role": "user", "content": "x"}], "Sure"
    whole = [*turns, {"role": "assistant", "content": answer}]
    if tokenizer.chat_template is None:
        return b" "  # PLAIN_TEMPLATE ends in a colon
    try:
        opened, closed = (
            list(tokenizer(_apply(tokenizer, part, None, opens), add_special_tokens=False)["input_ids"])
            for part, opens in ((turns, True), (whole, False))
        )
    except Exception:  # a template is a program: what it refuses, and how, is said where it is used
        return b""
    written = text_of(closed[len(opened) :]) if closed[: len(opened)] == opened else b""
    lead, word, _ = written.partition(answer.encode())
    return lead if word and not lead.strip() else b""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text that is to be continued: begun as the tokenizer begins a text, and not ended.

    Raises:
        UserError: The text is empty.
    """
    if not text.strip():
        raise UserError("The prompt is empty: give some text.")
    ids: list[int] = list(tokenizer(text)["input_ids"])
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        del ids[0]  # the text brought its own
    if ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        del ids[-1]  # a tokenizer of a fine-tune that ends every text
    return ids


def _with_system(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """The rendered conversation; a template that refuses or drops the system role gets its text in the first turn."""
    system = turns[0]["content"].strip() if turns[0]["role"] == "system" and len(turns) > 1 else None
    try:
        text = _apply(tokenizer, turns)
        if system is None or system in text:
            return text
    except Exception as error:  # a template is a program, and may raise anything
        if system is None:
            raise _refused(error) from None
    merged = {**turns[1], "content": f"{system}\n\n{turns[1]['content']}"}
    try:
        return _apply(tokenizer, [merged, *turns[2:]])
    except Exception as error:  # likewise
        raise _refused(error) from None


def _refused(error: Exception) -> UserError:
    why = str(error).rstrip(".")
    if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError | UndefinedError):
        return UserError(f"The model's chat template refuses this conversation: {why}.")  # in its author's words
    return UserError(f"The model's chat template fails ({why}): mend it, or give another one as chat_template.")


def _apply(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], template: str | None = None, opens: bool = True
) -> str:
    return str(
        tokenizer.apply_chat_template(list(turns), chat_template=template, add_generation_prompt=opens, tokenize=False)
    )


def _checked(message: Any, specials: tuple[str, ...]) -> dict[str, str]:
    parts = message_parts(message, specials, images=False)
    return {"role": message["role"], "content": turn_text({"content": parts})}


def message_parts(message: Any, specials: tuple[str, ...], *, images: bool) -> list[dict[str, Any]]:
    """The parts of one message, its texts without control tokens.

    Args:
        message: `{"role": ..., "content": text}`, or with a list of parts of type text or image as its content.
        specials: The control tokens.
        images: Whether the model reads any.

    Raises:
        UserError: It is no such message, or has an image that nobody would look at.
    """
    role = message.get("role") if isinstance(message, Mapping) else None
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if role not in _ROLES or not isinstance(parts, list) or not all(map(_is_part, parts)):
        raise UserError(
            f'A message is {{"role": "system", "user" or "assistant", "content": text}}, but one is {message!r:.80}.'
        )
    if not images and any(part["type"] == "image" for part in parts):
        raise UserError("The model reads no images, but the conversation has one: leave it out, or take another model.")
    return [
        {**part, "text": without_specials(part["text"], specials)} if part["type"] == "text" else dict(part)
        for part in parts
    ]


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def control_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What a tokenizer reads as control tokens wherever it stands in a text, longest first.

    These are all added tokens that are marked special, not only those with a role: a chat format's turn markers often
    have none.
    """
    marked = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(marked | {str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True))


def without_specials(text: str, specials: tuple[str, ...]) -> str:
    """`text` without any of the strings `specials`, also not as what is left after taking one out.

    One pass: whoever nests control tokens a thousand times over must not hold up everybody else.
    """
    if not any(special in text for special in specials if special):
        return text
    by_last: dict[str, list[str]] = {}
    for special in filter(None, specials):
        by_last.setdefault(special[-1], []).append(special)
    kept: list[str] = []
    for char in text:
        kept.append(char)
        for special in by_last.get(char, ()):
            if kept[-len(special) :] == list(special):
                del kept[-len(special) :]
                break
    return "".join(kept)
