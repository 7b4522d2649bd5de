from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from anchorlm.defenses import Defense
from anchorlm.engine import runtime
from anchorlm.guard._asked import Asked
from anchorlm.guard._check import Chosen, chosen, tell_once
from anchorlm.guard._conversation import check_conversation, checked_system, prepare
from anchorlm.guard._formats import check_format
from anchorlm.guard._outgoing import Outgoing
from anchorlm.guard._probe import Probe, probe
from anchorlm.guard._recipe import ProbeSettings, Recipe
from anchorlm.guard._tools import offered, told_apart
from anchorlm.records import (
    Decision,
    DefenseError,
    Event,
    Finished,
    GenerationSettings,
    Messages,
    Policy,
    Request,
    TextDelta,
    ThoughtSettings,
    Usage,
    UserError,
    checked_calls,
    checked_options,
    checked_thoughts,
    checked_tools,
)
from anchorlm.team import (
    EngineSettings,
    JudgeLike,
    ModelLike,
    Offer,
    ScorerLike,
    Started,
    Team,
    require_leave,
    start_engine,
    start_judge,
    start_scorer,
)

if TYPE_CHECKING:
    from anchorlm.guard._findings import Findings

_log = logging.getLogger("anchorlm")


class Guard(Asked):
    """A target model with a defense around it.

    Args:
        target: The model to guard: a Hub id or folder, its settings, a loaded `CausalModel`, or an engine.
        defense: Name of a defense, or the class of one; or one with its knobs, as `from_recipe` has read it.
        anchor: The aligned model that guides, if the defense takes one.
        judge: Who grades candidates, if the defense takes one: a `Judge`, settings such as
            `{"kind": "rubric", "model": "org/name"}`, a model that grades by the default rubric, or a function
            `(messages, response) -> harm`.
        cost: What a text costs, above 0 being unsafe, if the defense takes it: a `Scorer`, a judge (its harm less
            0.375), settings such as `{"model": "org/name"}`, the path of a classifier, or a function
            `(messages, response) -> number`.
        reward: What a text is worth, likewise.
        generation: Defaults for every request.
        engine: Limits of the engines that the guard starts.
        system: Your own system prompt, which goes before every conversation. The models that answer read it; judges,
            cost models and gates do not. Raw prompts go without it.
        thoughts: What becomes of what a target thinks before it answers: "off", "hide" or "show", or all settings of
            `ThoughtSettings`.
        on_error: What a request gets when the defense could not do its work (its judge failed, say): the configured
            refusal, or the `DefenseError`. A user's mistake is always raised.
        probes: What `probe` tries it with.
        started: Models that other guards have loaded, which this one shares, and to which it adds its own.
        **knobs: Settings of the defense that differ from their defaults.

    Raises:
        UserError: A model that cannot be loaded, a gap between defense and models, an unknown or unfit knob.
    """

    def __init__(
        self,
        target: ModelLike,
        defense: str | type[Defense] | Chosen = "undefended",
        *,
        anchor: ModelLike | None = None,
        judge: JudgeLike | None = None,
        cost: ScorerLike | None = None,
        reward: ScorerLike | None = None,
        generation: GenerationSettings | Mapping[str, Any] | None = None,
        engine: EngineSettings | Mapping[str, Any] | None = None,
        system: str | None = None,
        thoughts: ThoughtSettings | Mapping[str, Any] | Policy = "hide",
        on_error: Literal["refuse", "raise"] = "refuse",
        probes: ProbeSettings | Mapping[str, Any] | None = None,
        started: Started | None = None,
        **knobs: Any,
    ) -> None:
        self.thoughts = checked_thoughts(thoughts)
        if not isinstance(defense, Chosen):  # what does not fit is said before a weight is loaded
            defense = Chosen.of(defense, knobs)
            named = Offer.named(target=target, anchor=anchor, judge=judge, cost=cost, reward=reward)
            defense.require(named)
        if on_error not in ("refuse", "raise"):
            raise UserError(f"on_error = {on_error!r} is neither 'refuse' nor 'raise'.")
        self.on_error = on_error
        self.system = checked_system(system)
        self.generation = GenerationSettings.given(generation, where="generation")
        self.probes = ProbeSettings.given(probes, where="the probe")
        limits = EngineSettings.given(engine, where="engine")
        started = [] if started is None else started
        team = Team(
            start_engine(target, limits, started),
            None if anchor is None else start_engine(anchor, limits, started),
            None if judge is None else start_judge(judge, limits, started),
            None if cost is None else start_scorer(cost, limits, started),
            None if reward is None else start_scorer(reward, limits, started),
        )
        team.target.model.channel()  # is looked for now, not while a request waits
        self.defense = defense.on(team)
        if type(self.defense).start is not Defense.start:
            runtime().run(self.defense.start())
        self._told: set[str] = set()
        for caveat in self.defense.caveats:
            tell_once(caveat)

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | Recipe,
        *,
        started: Started | None = None,
        on_error: Literal["refuse", "raise"] = "refuse",
        **changes: Any,
    ) -> Self:
        """The guard that a TOML file describes; `changes` are put over it by dotted name.

        Guards that are given one list as `started` load equal models once.

        Raises:
            UserError: As `Recipe.load` and `Guard`.
        """
        if not isinstance(recipe, Recipe):
            recipe = Recipe.load(recipe, changes)
        elif changes:
            raise UserError("Changes go over a recipe's file: give them to Recipe.load.")
        require_leave(recipe.judge, recipe.cost, recipe.reward)
        return cls(
            recipe.target,
            chosen(recipe),  # before any model is imported; and no knob may pass for an argument
            anchor=recipe.anchor,
            judge=recipe.judge,
            cost=recipe.cost,
            reward=recipe.reward,
            generation=recipe.generation,
            engine=recipe.engine,
            system=recipe.serve.get("system"),
            thoughts=recipe.thoughts,
            started=started,
            on_error=on_error,
            probes=recipe.probe,
        )

    @staticmethod
    def check(recipe: str | Path | Recipe, **changes: Any) -> Findings:
        """What `anchorlm check` prints of a recipe, found from configurations and tokenizers: no weights are loaded.

        Args:
            recipe: A TOML file, or a recipe.
            **changes: Values to put over the file's, by dotted name.

        Raises:
            UserError: The file is no recipe.
        """
        from anchorlm.guard._examine import examine

        return examine(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, changes))

    # --- before the first request -----------------------------------------------------------------------------------

    def probe(self, *, raw: bool = True) -> Probe:
        """Tries the guard with a known harmful and a known harmless request, through every door and all at once: alone,
        after a harmless turn, with an opened answer as the last turn, raw. Its judge and its cost model are given a
        known bad answer and known good ones.

        Args:
            raw: Whether raw prompts will reach it, too.

        Returns:
            What was found at each door; nothing is raised for what is wrong.
        """
        return runtime().run(probe(self, self.probes, raw=raw))

    async def aprobe(self, *, raw: bool = True) -> Probe:
        """`probe` for callers with an event loop of their own."""
        return await asyncio.wrap_future(runtime().submit(probe(self, self.probes, raw=raw)))

    # --- one request ------------------------------------------------------------------------------------------------

    def request(
        self,
        messages: Messages | str,
        knobs: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool = True,
        **generation: Any,
    ) -> Request:
        """A request with this guard's defaults; all kinds of settings are checked here.

        Args:
            messages: The conversation, or a raw prompt.
            knobs: Settings of the defense for this request only.
            template: Variables of the target's chat template, likewise.
            tools: What the target may call, in OpenAI's form.
            tool_choice: "auto", "none", "required", or the form that names one tool.
            parallel_tool_calls: Whether one response may hold several calls.
            **generation: How tokens are chosen.

        Raises:
            UserError: An unknown setting or a value out of range; or tools that the target's chat template or the
                defense does not take.
        """
        settings = self.generation.replace(generation, where="generation")
        check_format(self.defense, settings)
        try:
            options = checked_options(template or {})
        except ValueError as error:
            raise UserError(f"The variables of the chat template do not fit: {error}.") from None
        use = checked_tools(tools, tool_choice, several=parallel_tool_calls)
        request = Request(
            checked_calls(messages), settings, dict(knobs or {}), system=self.system, template=options,
            thoughts=self.thoughts, tools=use,
        )  # fmt: skip
        own = self.defense.settings_for(request)
        request = replace(request, parsed=(request.knobs, self.defense.settings, own))
        return offered(self.defense, request, own)

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """What the defense says and decides, on the engines' thread: every other face of the guard drains this."""
        check_conversation(request.messages, images=self.defense.target.model.processor is not None)
        await prepare(self.defense.team, request)
        outgoing = Outgoing(self.defense, request, request.thoughts or self.thoughts)
        try:
            async for event in told_apart(outgoing.events(), self.defense, request):
                yield event
        except DefenseError as error:
            # Text that is out cannot be taken back: then only the error is honest.
            if self.on_error == "raise" or outgoing.spoken:
                raise
            if str(error) not in self._told:  # once for each reason, not for each row of a batch
                self._told.add(str(error))
                _log.warning("A request was refused because its defense failed: %s", error)
            yield Decision("fail_closed", {"why": str(error)})
            yield TextDelta(self.defense.settings.refusal)  # checked at the start, which a request's own was not
            yield Finished("refusal", Usage(0, 0, 0))
