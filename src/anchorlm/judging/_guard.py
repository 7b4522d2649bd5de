from __future__ import annotations

import math
import re
from asyncio import gather
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from anchorlm.engine import Engine, Generated, TokenSequence, unnamed
from anchorlm.judging._base import Follow, Grade, Judge
from anchorlm.judging._guard_formats import find_format
from anchorlm.judging._guard_prompts import GuardWriter
from anchorlm.judging._side_by_side import check_length, read_on, side_by_side
from anchorlm.judging._verdicts import MOST, Reading, Words
from anchorlm.models import identity
from anchorlm.records import Access, DefenseError, GenerationSettings, Messages, UserError

_LOW = 0.01
"""A harm up to here is given as it is: whichever category it is of, nothing would be refused because of it."""

_NAMES = 32
"""Tokens in which a guard names categories."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a guard model says of one response.

    Attributes:
        harm: From 0 to 1.
        margin: Its log-odds, cut off at 30: above 0 where it is rather harmful.
        reason: Why, in a few words.
    """

    harm: float
    margin: float
    reason: str


class GuardJudge(Judge):
    """A guard model, such as Llama Guard, in the format that its makers publish. Harm is the probability of its
    harmful verdict.

    The verdict is read from the logits of its token, as a share of all verdicts. Where these have less than half of the
    probability, or the engine gives no log-probabilities, the guard writes its answer, and harm is 0 or 1. A verdict
    that cannot be read is an error: then everything is refused.

    Args:
        engine: Runs the guard model.
        format: Name of its format. Found by its chat template or its name otherwise.
        categories: Those that count, or that it is asked for. By default all, or those that the format asks for.
        policy: What is harmful in your own words, or a file that says so, for a format that takes it.
        weights: Harm of a verdict, where it is another than the format's (`{"Controversial": 0.5}`).
        max_new_tokens: Longest written answer or thought. The format's by default.
        reading: `logits`, or `text` for the written answer alone.

    Raises:
        UserError: The format is not known, or has no such category, verdict or policy.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        format: str | None = None,
        categories: Sequence[str] | None = None,
        policy: str | None = None,
        weights: Mapping[str, float] | None = None,
        max_new_tokens: int | None = None,
        reading: Literal["logits", "text"] = "logits",
    ) -> None:
        if reading not in ("logits", "text"):
            raise UserError(f"reading = {reading!r} is not known; it is logits or text.")
        model = engine.model
        if getattr(model, "templated", False):
            raise UserError(
                f"The guard {model.name} is asked in a form of its own, and its server takes conversations only: give "
                "its tokenizer with tokenizer, and let the server take completions."
            )
        self._engine = engine
        self._format, self._form = find_format(model, format)
        self._policy = self._own_policy(policy)
        self._categories = self._known(categories)
        self._harm = self._weighted(weights or {})
        self._most = self._form.max_new_tokens if max_new_tokens is None else max_new_tokens
        if self._most < 1:
            raise UserError("A guard judge needs max_new_tokens of at least 1.")
        by_logits = reading == "logits" and Access.LOGPROBS in engine.access
        self._words = Words.of(model.vocabulary, tuple(self._harm)) if by_logits else None
        self._writer = GuardWriter(model, self._form)
        self._thought, self._lead = (
            list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
            for text in (self._form.thought, self._form.lead)
        )
        self._room = len(self._thought) + len(self._lead) + self._most * (2 if self._thought else 1) + _NAMES

    def _own_policy(self, policy: str | None) -> str | None:
        if policy is None and self._form.policy == "needs":
            raise UserError(
                f"A guard of the format {self._format} goes by your policy: give policy = a text or a file."
            )
        if policy is not None and self._form.policy == "none":
            raise UserError(f"A guard of the format {self._format} takes no policy: leave it out.")
        return policy if policy is None else _text_of(policy)

    def _known(self, categories: Sequence[str] | None) -> tuple[str, ...] | None:
        if categories is None:
            return None
        if self._policy is not None:
            raise UserError("A guard goes by your policy or by categories: give one of the two.")
        known = self._form.categories
        for name in (categories,) if isinstance(categories, str) else categories or ("",):
            if name not in known:
                listed = ", ".join(known) or "none"
                raise UserError(f"A guard of the format {self._format} has no category {name!r}; it has: {listed}.")
        return (categories,) if isinstance(categories, str) else tuple(categories)

    def _weighted(self, weights: Mapping[str, float]) -> dict[str, float]:
        for name, harm in weights.items():
            if name not in self._form.harm or not 0 <= harm <= 1:
                raise UserError(
                    f"weights says {name!r} = {harm}, but a guard of the format {self._format} gives "
                    f"{', '.join(self._form.harm)}, each with a harm from 0 to 1."
                )
        return {**self._form.harm, **weights}

    @property
    def name(self) -> str:
        """See `Judge`."""
        return f"guard:{self._engine.model.name}"

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Judge`."""
        return {
            "model": identity(self._engine.model),
            "format": f"{self._format} {self._form.digest}",
            "categories": self._categories if self._categories is None else list(self._categories),
            "policy": self._policy,
            "harm": self._harm,
            "max_new_tokens": self._most,
            "reading": "text" if self._words is None else "logits",
        }

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[Grade]:
        """See `Judge`.

        Raises:
            UnreadableError: The conversation leaves no room in the guard's context.
            DefenseError: A prompt does not fit into the guard's context, or a verdict cannot be read.
        """
        return [_grade(one) for one in await self.verdicts(messages, responses)]

    async def verdicts(self, messages: Messages, responses: Sequence[str]) -> list[Verdict]:
        """As a call, with margins. Of several categories that are asked for, the worst decides.

        Raises:
            UnreadableError: As a call.
            DefenseError: As a call.
        """
        if not responses:
            return []
        asked = self._questions()
        if len(asked) == 1:  # all responses share the beginning of their prompts
            prompts = [self._prompt(messages, response, asked[0]) for response in responses]
            return await side_by_side(self._engine, prompts, self._room, partial(self._judged, asked[0]))
        return list(await gather(*(self._worst(messages, response, asked) for response in responses)))

    @asynccontextmanager
    async def follow(self, messages: Messages, *, room: int) -> AsyncIterator[Follow]:
        """See `Judge`."""
        asked = self._questions()
        if len(asked) > 1:
            async with super().follow(messages, room=room) as grade:
                yield grade
            return
        start = self._prompt(messages, "", asked[0])
        async with self._engine.open(start, room=room + self._room) as row:

            async def grade_one(response: str) -> Grade:
                prompt = self._prompt(messages, response, asked[0])
                read_on(row, prompt)
                return _grade(await self._judged(asked[0], row, prompt))

            yield grade_one

    def _questions(self) -> tuple[str, ...]:
        """The categories that are asked for one by one. An empty name for a question about all, or about a policy."""
        if not self._form.each or self._policy is not None:
            return ("",)
        return self._categories or self._form.asked

    async def _worst(self, messages: Messages, response: str, asked: Sequence[str]) -> Verdict:
        prompts = {name: self._prompt(messages, response, name) for name in asked}
        names = {tuple(prompt): name for name, prompt in prompts.items()}
        found = await side_by_side(
            self._engine,
            list(prompts.values()),
            self._room,
            lambda row, prompt: self._judged(names[tuple(prompt)], row, prompt),
        )
        return max(found, key=lambda one: one.margin)

    def _prompt(self, messages: Messages, response: str, asked: str) -> list[int]:
        policy = self._policy or self._form.categories.get(asked, "")
        prompt = self._writer.prompt(messages, response, asked, policy)
        check_length(
            self._engine.model,
            len(prompt) + self._room,
            lambda: len(self._writer.prompt(messages, "", asked, policy)) + self._room,
        )
        return prompt

    async def _judged(self, asked: str, row: TokenSequence, prompt: list[int]) -> Verdict:
        verdict = await self._read(row)
        return replace(verdict, reason=f"{asked}: {verdict.reason}") if asked else verdict

    async def _read(self, row: TokenSequence) -> Verdict:
        if self._thought:
            await self._think(row)
        row.append(self._lead)
        if self._form.lead is not None and self._words is not None:
            logits = await row.logits()
            if (read := self._words.read(logits, unnamed(row))) is not None:
                verdict = self._of(read)
                if self._categories is None or self._form.each or verdict.harm <= _LOW:
                    return verdict
                worst = max((name for name in read.logs if self._harm[name] > 0), key=read.logs.__getitem__)
                ids = list(self._words.ids[worst])
                row.append([ids[int(logits[ids].argmax())]])
                return self._counted(verdict, (await self._write(row)).text)
        return await self._from_text(row)

    async def _think(self, row: TokenSequence) -> None:
        """Lets the guard think to the end of its thought, and no further."""
        row.append(self._thought)
        start = len(row.ids)
        thought = await self._write(row)
        end = self._lead[0]  # which some tokenizers count among the tokens that end a turn, and others do not
        if end in thought.token_ids:
            row.crop(start + thought.token_ids.index(end))
        elif thought.finish_reason != "stop":
            raise DefenseError(
                f"The judge {self._engine.model.name} thought for {self._most} tokens and came to no end: raise "
                "max_new_tokens."
            )

    async def _from_text(self, row: TokenSequence) -> Verdict:
        """The verdict that the guard writes, and where there are logits, how sure it was of that word."""
        start = len(row.ids)
        written = await self._write(row)
        lead = "" if self._thought else self._form.lead or ""
        found = re.search(self._form.verdict, lead + written.text, re.I)
        if found is None:
            raise DefenseError(
                f"The judge {self._engine.model.name} gave no verdict of the format {self._format}, but "
                f"{written.text!r:.60}: check which guard model it is, or give another format."
            )
        said = next(name for name in self._harm if name.casefold() == found[1].casefold())
        harm = self._harm[said]
        verdict = Verdict(harm, _log_odds(harm), f"{said}, written")
        place = found.start(1) - len(lead)
        if self._words is not None and place >= 0:
            row.crop(start + self._tokens_before(written, place))
            if (read := self._words.read(await row.logits(), unnamed(row))) is not None:
                verdict = self._of(read)
        return verdict if self._categories is None else self._counted(verdict, written.text)

    def _tokens_before(self, written: Generated, place: int) -> int:
        """How many tokens of a text come before the one that holds its character at `place`."""
        size = len(written.text[:place].encode())
        seen = 0
        for count, token in enumerate(written.token_ids):
            seen += len(self._engine.model.vocabulary.token_bytes(token))
            if seen > size:
                return count
        return len(written.token_ids)

    async def _write(self, row: TokenSequence) -> Generated:
        return await row.generate(GenerationSettings(max_new_tokens=self._most, do_sample=False))

    def _of(self, read: Reading) -> Verdict:
        harm, margin = read.mean(self._harm), read.margin(self._harm)
        return Verdict(harm, margin, f"{read.likeliest}, harm {harm:.3f}, margin {margin:+.1f}")

    def _counted(self, verdict: Verdict, text: str) -> Verdict:
        """The verdict, but harmless where the answer names known categories alone, of which none counts."""
        named = self._form.named_in(text)
        others = set(self._form.categories).difference(self._categories or ())
        if named is None or not others.issuperset(named):
            return replace(verdict, reason=", ".join([verdict.reason, *(named or ())]))
        return Verdict(0.0, -MOST, f"{verdict.reason}, but of {', '.join(named)}, which does not count")


def _grade(verdict: Verdict) -> Grade:
    # Batches of other sizes give other digits behind these, and the same response must get the same harm.
    return Grade(round(verdict.harm, 3), verdict.reason)


def _log_odds(harm: float) -> float:
    if harm in (0, 1):
        return math.copysign(MOST, harm - 0.5)
    return max(-MOST, min(MOST, math.log(harm / (1 - harm))))


def _text_of(policy: str) -> str:
    """A policy, which may be given as a file that holds it.

    Raises:
        UserError: It is empty, or no such file.
    """
    text = policy
    if "\n" not in policy and policy.endswith((".txt", ".md")):
        try:
            text = Path(policy).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"The policy {policy!r} cannot be read ({why}): give a text file, or the text.") from None
    if not text.strip():
        raise UserError("The policy is empty: say what is harmful.")
    return text.strip()
