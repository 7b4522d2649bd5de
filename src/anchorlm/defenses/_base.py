from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import gather
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from anchorlm.judging import Grade, Judge, checked_scores, marked
from anchorlm.records import (
    Artifact,
    Decision,
    DefenseError,
    Event,
    Finished,
    FormatSupport,
    GenerationSettings,
    Request,
    Settings,
    TextDelta,
    ThoughtSettings,
    UnreadableError,
    Usage,
    UserError,
)
from anchorlm.steering import KIND, uncalibrated
from anchorlm.team import Needs, Team, in_time, timed

if TYPE_CHECKING:
    from anchorlm.engine import Engine, TokenSequence
    from anchorlm.tokens import ByteVocabulary

GROUP = "anchorlm.defenses"
"""The entry-point group through which defenses, the built-in ones too, are found."""


class DefenseSettings(Settings):
    """The knobs that every defense has."""

    refusal: str = Field(
        default="I'm sorry, but I can't help with that.",
        min_length=1,
        description="What the user gets if there is no safe answer, or if the defense cannot do its work.",
    )


@contextmanager
def _failing_closed(who: str) -> Iterator[None]:
    """Whatever a judge or a scorer raises is a `DefenseError`: without its word nothing may be taken for safe. But a
    prompt that it could not read whatever were answered is the fault of who sent it.
    """
    try:
        yield
    except (DefenseError, UnreadableError):
        raise
    except UserError as error:  # its model says no numbers, say
        raise DefenseError(f"{who} failed: {error}") from error
    except (Exception, SystemExit) as error:  # a third party's may raise anything
        raise DefenseError(f"{who} failed ({type(error).__name__}: {error}).") from error


class Defense(ABC):
    """One method: a coroutine for one request over the control points, written in the order of its paper.

    A subclass names itself, its settings and its needs, and implements `respond`. It pads, batches and caches nothing:
    everything that waits for a model is run together by the engine.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "tokens"
    settings_type: ClassVar[type[DefenseSettings]] = DefenseSettings
    artifacts: ClassVar[Mapping[str, str]] = {}
    """Settings that name the folder of a fitted artifact, and its kind. They hold for all requests of a guard."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Which of them are looked for in the target's own folder, under the name of their kind, where none is given."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Other settings that hold for all requests of a guard, because what they name was loaded when it started."""
    thinks: ClassVar[bool] = False
    """Whether it knows where a thought ends and the answer begins; a guard parts them for one that does not."""
    formats: ClassVar[FormatSupport] = "none"
    """Where it holds an answer to a request's response format. All its text then comes from `generate` and `stream` of
    a sequence, or is chosen from what `formed` makes of logits."""
    calls: ClassVar[bool] = False
    """Whether it can vouch for calls of tools: it has seen the whole answer, call and all, before anything goes out."""
    refuses: ClassVar[bool] = True
    """Whether it promises to refuse harmful requests: what a guard's probe holds it to."""

    def __init__(self, team: Team, *, settings: DefenseSettings | None = None, **knobs: Any) -> None:
        """Prepares the defense for a team that has been checked against `needs`.

        Args:
            team: The models.
            settings: The knobs, where they are parsed already.
            **knobs: Knobs that differ from their defaults.

        Raises:
            UserError: An unknown knob or a value out of range.
        """
        self.team = team
        self.target = team.target
        self.settings: Any = settings or self.settings_type.parse(knobs, where=f"the defense {self.name}")

    @property
    def anchor(self) -> Engine:
        """The anchor, which `needs` promises."""
        if self.team.anchor is None:
            raise UserError(f"The defense {self.name} needs an anchor: give a small aligned model as anchor=.")
        return self.team.anchor

    def anchor_for(self, request: Request) -> Engine:
        """The anchor, which has failed when it says nothing for as long as the request has patience."""
        return timed(self.anchor, request.patience)

    @property
    def judge(self) -> Judge:
        """The judge, which `needs` promises."""
        if self.team.judge is None:
            raise UserError(f"The defense {self.name} needs a judge: give one as judge=.")
        return self.team.judge

    @property
    def caveats(self) -> tuple[str, ...]:
        """What is to be known before it is trusted, a sentence each: a fitted artifact that no one calibrated."""
        folders = (getattr(self.settings, name, None) for name, kind in self.artifacts.items() if kind == KIND)
        found = [uncalibrated(Artifact.load(folder)) for folder in folders if folder is not None]
        return tuple(caveat for caveat in found if caveat is not None)

    @property
    def facts(self) -> tuple[str, ...]:
        """What it found out about its models when it was made, a phrase each, for `anchorlm check`."""
        return ()

    def vouches(self, settings: Any) -> bool:
        """Whether it can vouch for calls of tools under the settings of a request."""
        return self.calls

    async def start(self) -> None:  # noqa: B027 (most defenses have nothing to do here)
        """Run once on the engines' thread, before the first request: what must be known of the models by then.

        Raises:
            UserError: The defense cannot keep its word with these models.
        """

    async def scores(self, kind: Literal["cost", "reward"], request: Request, texts: Sequence[str]) -> list[float]:
        """The cost or the reward of each text, as far as it will be given.

        Raises:
            UserError: There is no such model.
            DefenseError: The scorer raised, or did not give one number per text: nothing may be taken for safe then.
        """
        scorer = self.team.cost if kind == "cost" else self.team.reward
        if scorer is None:
            raise UserError(f"The defense {self.name} needs a {kind} model: give one as {kind}=.")
        readings = request.readings if kind == "cost" else request.readings[:1]
        thoughts = [request.thought] if kind == "cost" and request.thought and scorer.reads_thoughts else []
        thoughts = thoughts if request.thoughts is not None and request.thoughts.costed else []
        with _failing_closed(f"The {kind} model {scorer.name}"):
            asked = [
                partial(checked_scores, scorer, talk, [*(begun + request.judged(text) for text in texts), *thoughts])
                for talk, begun in readings
            ]
            found = await gather(*(in_time(ask, scorer.name, request.patience) for ask in asked))
        own = [max(each) for each in zip(*found, strict=True)]
        return [max(score, *own[len(texts) :]) if thoughts else score for score in own[: len(texts)]]

    async def grades(self, request: Request, texts: Sequence[str]) -> list[Grade]:
        """The judge's grade of each text, as far as it will be given.

        Raises:
            DefenseError: The judge raised, or did not give one grade per text: nothing may be taken for safe then.
        """
        settings = request.thoughts or ThoughtSettings()
        seen = (self.judge.reads_thoughts and settings.judged) or settings.policy == "show"
        thought = request.thought if seen else None
        with _failing_closed(f"The judge {self.judge.name}"):
            asked = [
                partial(self.judge, talk, [_with(thought, begun + request.judged(text)) for text in texts])
                for talk, begun in request.readings
            ]
            found = await gather(*(in_time(ask, self.judge.name, request.patience) for ask in asked))
        for grades in found:
            if (
                not isinstance(grades, list)
                or len(grades) != len(texts)
                or not all(isinstance(g, Grade) for g in grades)
            ):
                raise DefenseError(
                    f"The judge {self.judge.name} did not give one grade for each of {len(texts)} responses."
                )
        return [max(each, key=lambda grade: grade.harm) for each in zip(*found, strict=True)]

    def settings_for(self, request: Request) -> Any:
        """The settings with the request's own knobs.

        Raises:
            UserError: An unknown knob, a value out of range, or one that cannot differ between requests.
        """
        if request.parsed is not None and request.parsed[0] is request.knobs and request.parsed[1] is self.settings:
            return request.parsed[2]
        for name in (*self.artifacts, *self.fixed):
            if name in request.knobs and request.knobs[name] != getattr(self.settings, name):
                raise UserError(f"{name} cannot differ between requests: start another guard with this {name}.")
        settings = self.settings.replace(request.knobs, where=f"the defense {self.name}")
        self.check(settings)
        return settings

    def check(self, settings: Any) -> None:  # noqa: B027 (most defenses have nothing to say)
        """Whether these models allow the settings of a request, or the defense's own.

        Raises:
            UserError: They do not.
        """

    @abstractmethod
    def respond(self, request: Request) -> AsyncIterator[Event]:
        """Answers one request: text and decisions as they come, and `Finished` as the last event."""


def _with(thought: str | None, answer: str) -> str:
    """What a judge reads: the answer, and the thought before it, if that is to be seen."""
    return marked(thought, answer) if thought else answer


def room_for(engine: Engine, prompt_length: int, generation: GenerationSettings) -> int:
    """Most tokens of the response: as many as were asked for, and as the context holds after the prompt.

    At least one: a prompt that leaves no room is turned down by the engine.
    """
    return max(1, min(generation.max_new_tokens, engine.model.context_length - prompt_length))


def ends(row: TokenSequence, generation: GenerationSettings) -> frozenset[int]:
    """The tokens that end the answer: those of the model, and those that the request names."""
    return row.stops.union(generation.stop_token_ids)


def varied(generation: GenerationSettings, temperature: float) -> GenerationSettings:
    """The request's own way of choosing tokens if it samples; else sampling at `temperature`, so rows differ."""
    if generation.do_sample:
        return generation
    return generation.model_copy(update={"do_sample": True, "temperature": temperature})


class Speech:
    """Tells the tokens of a response as they are settled.

    Args:
        sequence: The target's.
        vocabulary: Of its tokens.
    """

    def __init__(self, sequence: TokenSequence, vocabulary: ByteVocabulary) -> None:
        from anchorlm.engine import TextStream

        self._sequence = sequence
        self._text = TextStream(vocabulary)
        self._at = sequence.prompt_length

    def say(self, token: int) -> TextDelta:
        """The next token."""
        self._at += 1
        return TextDelta(self._text.feed(token), (token,), self._sequence.scores(self._at - 1, self._at))

    def due(self) -> Iterator[TextDelta]:
        """What is settled by now."""
        for token in self._sequence.ids[self._at : self._sequence.prompt_length + self._sequence.settled]:
            yield self.say(token)

    def rest(self) -> Iterator[TextDelta]:
        """Everything else, at the end."""
        for token in self._sequence.ids[self._at :]:
            yield self.say(token)
        if left := self._text.flush():
            yield TextDelta(left)


async def stream_target(
    sequence: TokenSequence,
    target: Engine,
    generation: GenerationSettings,
    speech: Speech | None = None,
    *,
    prompt_tokens: int | None = None,
) -> AsyncIterator[Event]:
    """Lets the target go on by itself and hands its text on token by token.

    Args:
        sequence: The target's sequence.
        target: Its engine.
        generation: How tokens are chosen; `max_new_tokens` of them at most from here on.
        speech: What told the first tokens of the response, if a defense has spoken already.
        prompt_tokens: Length of the prompt without the thought; None: of all that stands before the response.
    """
    speech = speech or Speech(sequence, target.model.vocabulary)
    async for token in sequence.stream(generation):
        yield speech.say(token)
    for piece in speech.rest():
        yield piece
    written = len(sequence.ids) - sequence.prompt_length
    usage = Usage(sequence.prompt_length if prompt_tokens is None else prompt_tokens, written, written)
    yield Finished("length" if sequence.full else "stop", usage)


def refuse(refusal: str, why: str, *, prompt_tokens: int) -> Iterator[Event]:
    """The configured refusal, and why it is given."""
    yield Decision("fallback", {"why": why})
    yield TextDelta(refusal)
    yield Finished("refusal", Usage(prompt_tokens, 0, 0))


def find_defense(name: str) -> type[Defense]:
    """The defense that is registered under `name`.

    Raises:
        UserError: There is none, or what is registered is no defense.
    """
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise UserError(f"There is no defense {name!r}; installed are: {', '.join(sorted(found))}.")
    try:
        loaded = found[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"The defense {name!r} is registered but cannot be imported: {error}.") from None
    if not (isinstance(loaded, type) and issubclass(loaded, Defense)):
        raise UserError(f"What is registered as the defense {name!r} is not a subclass of anchorlm.defenses.Defense.")
    return loaded


def defense_names() -> list[str]:
    """Every registered defense, sorted."""
    from importlib.metadata import entry_points

    return sorted({point.name for point in entry_points(group=GROUP)})
