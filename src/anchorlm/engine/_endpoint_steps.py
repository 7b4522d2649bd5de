"""One step by SGLang's own interface, which names tokens by their ids.

Its completions name them by texts that several share. SentencePiece's "▁the" and "the" are both "the". A byte that is
no character alone is named as in Latin-1: "Ã" is the byte C3, or the letter.
"""

from __future__ import annotations

from anchorlm.engine._endpoint_bodies import Abilities, neutral
from anchorlm.engine._endpoint_faults import MissingError
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_replies import Reply, UnusableError, read_step

_PATH = "/generate"


async def native_step(caller: Caller, found: Abilities, prompt: list[int], top: int) -> Reply:
    """The likeliest tokens after a prompt.

    Args:
        caller: Calls the server.
        found: What it can do.
        prompt: Tokens.
        top: How many likeliest ones to ask for.

    Raises:
        UnusableError: There are none in what it answers, or it has no such interface.
        DefenseError: It gave no answer.
    """
    # The seed has another name in each version, and does not change what is likely.
    params = {name: value for name, value in neutral(found).items() if name not in ("seed", "max_tokens")}
    body = {
        "input_ids": prompt,
        "sampling_params": params | {"max_new_tokens": 1},
        "return_logprob": True,
        "top_logprobs_num": top,
    }
    try:
        return read_step(await caller.post(_PATH, body, root=True), found.model)
    except MissingError:
        raise UnusableError(f"it has no {_PATH}") from None
