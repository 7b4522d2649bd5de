from __future__ import annotations

import re

_NAME = r"\|?(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection)\|?"
_WORD = r"(?:THINKING|THOUGHT|THOUGHTS|REASONING)"
_OPEN = (
    rf"(?:[<\[◁]{_NAME}[>\]▷]|<\|(?:START|BEGIN)_{_WORD}\|>|<\|inner_prefix\|>|<\|channel>(?:thought|analysis)\b"
    r"|<\|channel\|>(?:analysis|commentary)<\|message\|>)"
)
_CLOSE = (
    rf"(?:[<\[◁]/{_NAME}[>\]▷]|<\|END_{_WORD}\|>|<\|inner_suffix\|>|<channel\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>|\[BEGIN FINAL RESPONSE\])"
)
_WHOLE = re.compile(rf"{_OPEN}(?:(?!{_OPEN}).)*?{_CLOSE}", re.I | re.S)
_TO_THE_END = re.compile(rf"\A.*{_CLOSE}", re.I | re.S)
_BARE = re.compile(r"\Aanalysis(?=[A-Z]).*?assistantfinal(?=\S)", re.S)
"""The channels of gpt-oss, where the one who decoded them has left out the control tokens."""

_TAG = re.compile(rf"{_OPEN}|{_CLOSE}", re.I)


def without_thoughts(text: str) -> str:
    """What a reasoning model answers, without what it thinks aloud before, in `<think>` or a mark like it.

    A thought may have been opened by the chat template: then it begins with the text. Where no answer follows, what
    was thought is all that the user got, and is given.
    """
    text = _BARE.sub("", text)
    answer = _TO_THE_END.sub("", _WHOLE.sub("", text))
    if answer != text:
        answer = answer.lstrip()  # white space between a thought and its answer belongs to neither
    opened = re.search(_OPEN, answer, re.I)
    if opened and answer[: opened.start()].strip():
        return _TAG.sub("", answer)  # cut off within a later thought
    return answer if answer.strip() and not opened else _TAG.sub("", text)


def marked(thought: str, answer: str) -> str:
    """A thought and its answer as one text for judges, in which nothing but the answer itself comes behind the mark."""
    inside = _TAG.sub(lambda tag: f"{tag[0][0]} {tag[0][1:]}", thought)
    return f"<think>\n{inside}\n</think>\n\n{answer}"
