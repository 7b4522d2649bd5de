from __future__ import annotations

import re

_NAME = r"\|?(?:think|thinking|thought|thoughts|reasoning|reflection)\|?"
_OPEN = rf"[<\[◁]{_NAME}[>\]▷]"
_CLOSE = rf"[<\[◁]/{_NAME}[>\]▷]"
_WHOLE = re.compile(rf"{_OPEN}(?:(?!{_OPEN}).)*?{_CLOSE}", re.I | re.S)
_TO_THE_END = re.compile(rf"\A.*{_CLOSE}", re.I | re.S)
_TAG = re.compile(rf"{_OPEN}|{_CLOSE}", re.I)


def without_thoughts(text: str) -> str:
    """What a reasoning model answers, without what it thinks aloud before, in `<think>` or a tag like it.

    A thought may have been opened by the chat template: then it begins with the text. Where no answer follows, what
    was thought is all that the user got, and is given.
    """
    answer = _TO_THE_END.sub("", _WHOLE.sub("", text))
    opened = re.search(_OPEN, answer, re.I)
    if opened and answer[: opened.start()].strip():
        return _TAG.sub("", answer)  # cut off within a later thought
    return answer if answer.strip() and not opened else _TAG.sub("", text)
