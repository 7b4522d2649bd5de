"""What is asked of a server. All that it could choose for itself is said: its defaults may be the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anchorlm.records import GenerationSettings, UserError

Kind = Literal["llama-server", "vllm", "sglang", "anchorlm", "other"]
Mode = Literal["tokens", "text", "chat"]

_LARGEST = 2**31 - 1
_HISTORY = 8192
"""Tokens that a repetition penalty looks back on, where it is not known how many the model reads."""
_BEYOND: dict[str, Any] = {"top_k": None, "min_p": 0.0, "repetition_penalty": 1.0}
"""Samplers that the OpenAI interface does not know, and that servers have, with the values that ask for nothing."""
_LLAMA: dict[str, Any] = {
    "repeat_penalty": 1.0, "typical_p": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.0,
    "dry_multiplier": 0.0, "dynatemp_range": 0.0, "mirostat": 0, "post_sampling_probs": False, "cache_prompt": True,
}  # fmt: skip
_BY_ID: dict[str, dict[str, bool]] = {
    "vllm": {"return_tokens_as_token_ids": True},
    "sglang": {"return_token_ids": True},
}
"""Asks for the ids of tokens: of all that are named, or of those that were taken."""
_FLAGS: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server was found to do.

    Attributes:
        kind: Which server it is.
        version: Of the server, as it says. Empty where it does not.
        model: The model's id there.
        mode: How prompts go there: as tokens, as text, or as turns that the server writes itself.
        context: Tokens that the model reads. None where that is not known.
        extended: Whether it takes samplers beyond OpenAI's.
        top: Most likeliest tokens that come with each one. 0: none.
        continues: How an answer is continued that has begun. `no` where it cannot be.
        notes: What else was found, a sentence each.
    """

    kind: Kind = "other"
    version: str = ""
    model: str = ""
    mode: Mode = "chat"
    context: int | None = None
    extended: bool = False
    top: int = 0
    continues: Literal["yes", "flags", "no"] = "no"
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where prompts go."""
        return "/chat/completions" if self.mode == "chat" else "/completions"

    @property
    def native(self) -> bool:
        """Whether single steps are asked by SGLang's own interface: its completions name several tokens alike."""
        return self.kind == "sglang" and self.mode == "tokens"


def sampling(found: Abilities, generation: GenerationSettings, room: int) -> dict[str, Any]:
    """How tokens are to be chosen.

    Raises:
        UserError: In a way that this server does not know.
    """
    own = generation.do_sample
    body: dict[str, Any] = {
        "temperature": generation.temperature if own else 0.0,
        "top_p": generation.top_p if own else 1.0,
        "presence_penalty": generation.presence_penalty,
        "frequency_penalty": generation.frequency_penalty,
        "seed": small_seed(generation.seed),
        "max_tokens": room,
    }
    narrows = {"top_k": generation.top_k, "min_p": generation.min_p} if own else {}
    beyond = _BEYOND | narrows | {"repetition_penalty": generation.repetition_penalty}
    if found.extended:
        body |= beyond | {"top_k": beyond["top_k"] or -1}
        if found.kind == "llama-server":
            penalty = {"repeat_penalty": generation.repetition_penalty, "repeat_last_n": found.context or _HISTORY}
            body |= _LLAMA | penalty
    elif asked := [name for name, value in beyond.items() if value != _BEYOND[name]]:
        raise UserError(
            f"The server of {found.model} takes no {asked[0]}: leave {asked[0]} out of the generation settings."
        )
    return body


def neutral(found: Abilities) -> dict[str, Any]:
    """For one step of which the distribution is wanted. At temperature 1 it is the same before and after samplers.

    A server that names nothing where the answer ends is asked at temperature 0: what is missing is then the likeliest.
    """
    own = GenerationSettings(do_sample=found.extended, temperature=1.0)
    return sampling(found, own, 1)


def chosen(token: int) -> dict[str, Any]:
    """Makes the server take one token. What it says of the likeliest ones is what it says without."""
    return {"logit_bias": {str(token): 100}}


def likeliest(found: Abilities, top: int) -> dict[str, Any]:
    """Asks for the likeliest tokens."""
    if found.mode == "chat":
        return {"logprobs": True, "top_logprobs": top}
    return {"logprobs": top, **_BY_ID.get(found.kind, {})}


def with_prompt(found: Abilities, prompt: list[int] | str) -> dict[str, Any]:
    """A prompt that was written here."""
    return {"model": found.model, "prompt": prompt}


def with_turns(found: Abilities, asked: Mapping[str, Any], begun: str) -> dict[str, Any]:
    """A conversation that the server writes.

    Args:
        found: The server.
        asked: Its turns as `messages`, and what else the template gets.
        begun: What the answer begins with.
    """
    body: dict[str, Any] = {"model": found.model, **asked}
    if begun:
        body["messages"] = [*asked["messages"], {"role": "assistant", "content": begun}]
        if found.continues == "flags":
            body |= _FLAGS
    return body


def ends(found: Abilities, texts: tuple[str, ...], ids: frozenset[int]) -> dict[str, Any]:
    """Where an answer is to end, besides the places that the server knows."""
    body: dict[str, Any] = {"stop": list(texts[:4])} if texts else {}
    if takes_stop_ids(found) and ids:
        body["stop_token_ids"] = sorted(ids)
    return body


def takes_stop_ids(found: Abilities) -> bool:
    """Whether a server can be told the tokens that end an answer."""
    return found.kind in ("vllm", "sglang")


def small_seed(seed: int) -> int:
    """A seed that every server takes, 31 bits wide. Small ones stay as they are."""
    if seed <= _LARGEST:
        return seed
    mixed = 0
    while seed:
        mixed = (mixed * 1_000_003 + (seed & 0xFFFF_FFFF)) % _LARGEST
        seed >>= 32
    return mixed
