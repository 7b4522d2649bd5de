"""Whether a tokenizer is that of the model on a server. Two may know the same tokens and split words otherwise."""

from __future__ import annotations

from typing import Any

from anchorlm.engine._endpoint_bodies import Abilities, neutral, with_prompt, with_turns
from anchorlm.engine._endpoint_faults import RejectedError, wrong
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_replies import Reply, UnusableError, read_reply
from anchorlm.models import EndpointModel, EndpointSettings
from anchorlm.records import DefenseError, TooLongError, UserError

_START = "A"
"""One token for every tokenizer, whatever it puts before a text."""
_TEXTS = (
    "A baker splits unbelievable antidisestablishmentarianism and the strawberries over there",
    "A sum of 1234567890 and 3.14159 is less than 12-7e5, or 100%!",
    "A def name(x):\n    return {'key': [x]}\n\n\t# done",
    "A naïve Straße, Москва, 東京 and 🙂",
)
"""Texts that tokenizers split in many ways."""


class TokenizerCheck:
    """Compares how a tokenizer and a server split texts.

    Args:
        caller: Calls the server.
        settings: Of the endpoint.
        model: With its tokenizer.
        able: How prompts go to the server.
    """

    def __init__(self, caller: Caller, settings: EndpointSettings, model: EndpointModel, able: Abilities) -> None:
        self._caller = caller
        self._settings = settings
        self._model = model
        self._able = able

    def names(self, reply: Reply) -> None:
        """Looks at the tokens that an answer names with id and bytes.

        Raises:
            UserError: An id has other bytes here.
        """
        for one in [one for entry in reply.entries or () for one in (entry.taken, *entry.top)]:
            if one.id is None or not one.piece:
                continue
            own = self._model.vocabulary.token_bytes(one.id)
            if own not in (one.piece, b""):
                raise self._other(f"token {one.id} is {one.piece!r:.40} there, and {own!r:.40} here")

    async def splits(self) -> tuple[str, ...]:
        """Compares how texts are split, by the server's tokens where it shows them, else by their number.

        Returns:
            What could not be compared, a sentence each.

        Raises:
            UserError: A text is split otherwise.
        """
        for text in _TEXTS:
            theirs = await self._tokens(text)
            if theirs is None:
                return await self._counts()
            own = self._ids(text)
            if len(theirs) != len(own) or theirs[1:] != own[1:]:
                raise self._other(f"it splits {text[:30]!r} into {len(own)} tokens, and the server into {len(theirs)}")
        return ()

    async def _counts(self) -> tuple[str, ...]:
        base = await self._count(_START)
        for text in _TEXTS:
            theirs = None if base is None else await self._count(text)
            if base is None or theirs is None:
                return ("It does not count tokens: whether the tokenizer is right was seen from single tokens alone.",)
            own = len(self._ids(text)) - len(self._ids(_START))
            if theirs - base == own:
                continue
            if self._able.mode == "chat":  # what counts for several models may only estimate
                return ("It counts other tokens than the tokenizer: see whether that is the served model's.",)
            raise self._other(f"it adds {own} tokens for {text[:30]!r}, and the server {theirs - base}")
        return ()

    def _ids(self, text: str) -> list[int]:
        return list(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _tokens(self, text: str) -> list[int] | None:
        """A text as the server splits it. None where it does not show that."""
        if self._able.kind == "llama-server":
            body: dict[str, Any] = {"content": text, "add_special": False}
        elif self._able.kind in ("vllm", "sglang"):
            body = {"model": self._able.model, "prompt": text, "add_special_tokens": False}
        else:
            return None
        try:
            data = await self._caller.post("/tokenize", body, root=True)
        except (DefenseError, TooLongError):  # the counts will do
            return None
        found = data.get("tokens") if isinstance(data, dict) else None
        whole = isinstance(found, list) and all(type(one) is int for one in found)
        return found if whole else None

    async def _count(self, text: str) -> int | None:
        """How many tokens a prompt with this text has there. None where the server does not say it."""
        turns = {"messages": [{"role": "user", "content": text}]}
        able = self._able
        body = with_turns(able, turns, "") if able.mode == "chat" else with_prompt(able, text)
        try:
            return read_reply(await self._caller.post(able.path, body | neutral(able))).prompt_tokens
        except (RejectedError, TooLongError):
            return None
        except UnusableError as error:
            raise wrong(self._settings, str(error)) from None

    def _other(self, why: str) -> UserError:
        return UserError(
            f"{self._settings.tokenizer!r} is not the tokenizer of {self._settings.name}: {why}. Give the tokenizer of "
            "the served model."
        )
