from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, Self

from torch import Tensor

from anchorlm.engine._endpoint_bodies import (
    Abilities,
    ends,
    likeliest,
    neutral,
    sampling,
    takes_stop_ids,
    with_prompt,
    with_turns,
)
from anchorlm.engine._endpoint_faults import wrong
from anchorlm.engine._endpoint_format import as_asked, holds_formats
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_probe import probe
from anchorlm.engine._endpoint_reading import Reader, Written, answer_of, text_of
from anchorlm.engine._endpoint_replies import Reply, UnusableError, read_reply
from anchorlm.engine._endpoint_sequence import EndpointSequence
from anchorlm.engine._endpoint_steps import native_step
from anchorlm.engine._endpoint_watch import Watch
from anchorlm.engine._runtime import runtime
from anchorlm.engine._steering import Steering
from anchorlm.models import EndpointModel, EndpointSettings
from anchorlm.records import Access, DefenseError, GenerationSettings, TooLongError, UserError
from anchorlm.tokens import prompt_of

_WIDEST = 1024
"""Characters of a token at most, far above what real ones have. A text of many megabytes would hold up all guards."""


class EndpointEngine:
    """Sequences on a model that another server runs, behind an OpenAI-compatible address.

    Args:
        settings: The server's address, and how it is called.
        model: The model as defenses see it.
        caller: Calls the server.
        found: What it was found to do.
        known: What it tells of the model; None where it tells nothing.
    """

    max_rows = 1 << 30
    """How much it holds at once is the server's business: what is too much waits there."""
    max_tokens = 1 << 50

    def __init__(
        self, settings: EndpointSettings, model: EndpointModel, caller: Caller, found: Abilities, known: Any = None
    ) -> None:
        self.model = model
        self.found = found
        self._settings = settings
        self._caller = caller
        self._watch = Watch(caller, settings, found, known)
        self._reader = Reader(model, whole=found.mode != "tokens", latin=found.native)
        self._formats: bool | None = None  # whether it holds to response formats, once that was tried

    @classmethod
    def start(cls, settings: EndpointSettings) -> EndpointEngine:
        """Looks at the server and loads the tokenizer.

        Raises:
            UserError: The server is not there, refuses, or does not serve the model; or there is no tokenizer.
        """
        settings.check()
        caller = Caller(settings)
        model = EndpointModel.load(settings)
        try:
            found, known = runtime().run(probe(caller, settings, model))
        except DefenseError as error:
            raise UserError(str(error)) from None
        model.id, model.known, model.templated = found.model, known or {}, found.mode == "chat"
        model.context_length = found.context or model.context_length
        return cls(settings, model, caller, found, known)

    @property
    def access(self) -> Access:
        """How much of the model is within reach."""
        named = self.found.top > 1 and self.model.spelled and self.continues
        return Access.LOGPROBS if named else Access.TEXT

    @property
    def continues(self) -> bool:
        """Whether an answer that has begun can be continued."""
        return self.found.mode != "chat" or self.found.continues != "no"

    @property
    def told(self) -> str:
        """What was found, in a phrase."""
        found, reads = self.found, self.found.context
        server = " ".join(filter(None, [found.kind if found.kind != "other" else "an unknown server", found.version]))
        ways = {"tokens": "prompts go as tokens", "text": "prompts go as text", "chat": "the server writes the turns"}
        goes_on = "" if self.continues else ", cannot continue an answer"
        return (
            f"{server}, {ways[found.mode]}, {found.top or 'no'} likeliest tokens{goes_on}, reads "
            f"{'an unknown number of' if reads is None else f'{reads:,}'} tokens"
        )

    @property
    def lacks(self) -> str:
        """Why there are no log-probabilities here, and what helps; empty where there are."""
        if Access.LOGPROBS in self.access:
            return ""
        if not self.model.spelled:
            return f"give the tokenizer of {self.model.name} with tokenizer"
        if not self.continues:
            return f"the server of {self.model.name} cannot continue an answer, so load the model here"
        return f"the server of {self.model.name} names no likeliest tokens, so let it give log-probabilities"

    @asynccontextmanager
    async def open(self, ids: Sequence[int], *, rows: int = 1, room: int = 0) -> AsyncIterator[EndpointSequence]:
        """A sequence that starts with `ids`. How many there are at once is the server's business.

        Raises:
            UserError: The prompt is empty, or leaves no room in what the model reads.
        """
        limit = self.model.context_length
        if not ids:
            raise UserError("The prompt is empty: give some text.")
        if len(ids) >= limit:
            raise TooLongError(
                f"The prompt has {len(ids)} tokens, but {self.model.name} reads {limit} with its answer: shorten it."
            )
        root = EndpointSequence(self, ids, len(ids), min(len(ids) + room, limit))
        try:
            yield root
        finally:
            root.close()

    async def distribution(self, ids: Sequence[int], prompt_length: int) -> tuple[Tensor, float]:
        """Log-probabilities (V,) of the next token as far as the server names tokens, and the mass that is left.

        Raises:
            UserError: The server gives none.
            DefenseError: It gave none this time.
        """
        if Access.LOGPROBS not in self.access:
            raise UserError(f"Log-probabilities of the next token are out of reach: {self.lacks}.")
        try:
            reply = await self._step(ids)
            return self._reader.distribution(reply, answer_of(self.model, self._answer(ids, prompt_length)))
        except UnusableError as error:
            raise wrong(self._settings, str(error)) from None

    async def completed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int
    ) -> tuple[Written, Literal["stop", "length"]]:
        """What the model goes on with, and why it ends.

        Raises:
            DefenseError: The server gave no whole answer.
        """
        body, begun = self._prompt(ids)
        await self._check_format(generation, body)
        reply = await self._asked(body | self._asks(generation, room))
        self._check_length(len(reply.text) - len(begun), room)
        written = self._reader.written(reply, begun)
        finish = self._finish(reply.finish)
        if finish == "length" and not written.ids and not written.ended:
            raise wrong(self._settings, "it is empty, and has not ended")
        return written, finish

    async def streamed(
        self, ids: Sequence[int], generation: GenerationSettings, room: int
    ) -> AsyncGenerator[Written, None]:
        """The same in pieces, as they come.

        Raises:
            DefenseError: The stream ended before the answer did.
        """
        body, begun = self._prompt(ids)
        if begun:  # which some servers say again, in pieces
            written, end = await self.completed(ids, generation, room)
            yield replace(written, full=end == "length")
            return
        await self._check_format(generation, body)
        await self._watch.before()
        finish: str | None = None
        length = 0
        events = self._caller.stream(self.found.path, body | self._asks(generation, room) | {"stream": True})
        async with aclosing(events):
            async for event in events:
                reply = self._read(event, streamed=True)
                finish = reply.finish or finish
                if not reply.text and not reply.entries:
                    continue
                await self._watch.after(reply)
                length += len(reply.text)
                self._check_length(length, room)
                if (written := self._reader.written(reply)).ids or written.ended:
                    yield written
        if finish is None:
            raise wrong(self._settings, "it was cut off")
        yield Written([], [], ended=False, full=self._finish(finish) == "length")

    def steered(self, steering: Steering | None, prompt_length: int) -> Self:
        """Nothing can be added to activations there.

        Raises:
            UserError: Something was to be added.
        """
        if steering is not None:
            raise self._out_of_reach()
        return self

    async def activations(self, ids: Sequence[int], positions: Sequence[int], mean_from: int | None) -> Tensor:
        """Activations do not leave another server.

        Raises:
            UserError: Always.
        """
        raise self._out_of_reach()

    def _out_of_reach(self) -> UserError:
        return UserError(f"The activations of {self.model.name} are behind an endpoint: load the model here.")

    def _asks(self, generation: GenerationSettings, room: int) -> dict[str, Any]:
        """How to choose tokens, where to end, and what to tell of each token."""
        body = sampling(self.found, generation, room)
        if generation.stop_token_ids and not (self.model.spelled or takes_stop_ids(self.found)):
            raise UserError(
                f"The tokens of {self.model.name} are not known here, and its server takes no stop_token_ids: give its "
                "tokenizer, or use stop texts."
            )
        stops = self.model.stop_ids.union(generation.stop_token_ids)
        body |= as_asked(self.found, generation)
        # A text that begins another turn may stand in a value.
        body |= ends(self.found, self.model.stop_texts if generation.response_format is None else (), stops)
        wanted = generation.logprobs
        if self.found.top:
            # With its log-probability a token comes with its name, and so the answer in its own tokens.
            body |= likeliest(self.found, min(max(wanted or 0, 1), self.found.top))
        return body

    async def _check_format(self, generation: GenerationSettings, prompt: dict[str, Any]) -> None:
        """Tries once whether the server holds to response formats, if a request brings one.

        Raises:
            UserError: It does not.
        """
        if generation.response_format is None:
            return
        if self._formats is None:
            self._formats = await holds_formats(self._caller, self.found, prompt)
        if not self._formats:
            raise UserError(
                f"The server of {self.model.name} does not hold to a response_format: leave it out, or load the model "
                "here."
            )

    async def _step(self, ids: Sequence[int]) -> Reply:
        if self.found.native:
            await self._watch.before()
            reply = await native_step(self._caller, self.found, list(ids), self.found.top)
            await self._watch.after(reply)
            return reply
        body, _ = self._prompt(ids)
        return await self._reader.one_step(
            self._asked, body | neutral(self.found) | likeliest(self.found, self.found.top)
        )

    async def _asked(self, body: dict[str, Any]) -> Reply:
        await self._watch.before()
        reply = self._read(await self._caller.post(self.found.path, body))
        await self._watch.after(reply)
        return reply

    def _read(self, data: Any, *, streamed: bool = False) -> Reply:
        try:
            return read_reply(data, streamed=streamed)
        except UnusableError as error:
            raise wrong(self._settings, str(error)) from None

    def _check_length(self, length: int, room: int) -> None:
        if length > _WIDEST * room:
            raise wrong(self._settings, f"it is longer than {room} tokens can be")

    def _finish(self, said: str | None) -> Literal["stop", "length"]:
        if said == "stop":
            return "stop"
        if said == "length":
            return "length"
        raise wrong(self._settings, f"it ended because of {said!r:.40}")

    def _answer(self, ids: Sequence[int], prompt_length: int) -> list[int]:
        return prompt_of(ids)[1] if self.model.templated else list(ids[prompt_length:])

    def _prompt(self, ids: Sequence[int]) -> tuple[dict[str, Any], str]:
        """A sequence as the server takes it, and what of the answer the server may say again."""
        if self.found.mode == "tokens":
            return with_prompt(self.found, list(ids)), ""
        if self.found.mode == "text":
            return with_prompt(self.found, text_of(self.model, ids)), ""
        prompt, rest = prompt_of(ids)
        if isinstance(prompt, str):
            raise UserError(
                f"The server of {self.model.name} is asked by turns, and takes no raw prompt: give its tokenizer, or "
                "send a conversation."
            )
        begun = answer_of(self.model, rest).decode("utf-8", "ignore")
        if begun and not self.continues:
            raise DefenseError(
                f"The server of {self.model.name} cannot continue an answer that has begun: give its tokenizer, or "
                "load the model here."
            )
        turns = prompt["messages"]
        if self.continues and len(turns) > 1 and turns[-1]["role"] == "assistant":
            begun, prompt = turns[-1]["content"] + begun, {**prompt, "messages": turns[:-1]}
        return with_turns(self.found, prompt, begun), begun
