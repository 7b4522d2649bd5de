"""Inspect on guarded models: a provider, a task and a scorer, found through the entry point `inspect_ai`."""

from __future__ import annotations

from asyncio import wrap_future
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
    modelapi,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate
from inspect_ai.tool import ToolChoice, ToolInfo

from anchorlm.engine import runtime
from anchorlm.evaluation._inspect_tools import calls_of, offered, turn_of
from anchorlm.evaluation.runs._exclusion import MATCHER, chosen_by
from anchorlm.evaluation.runs._stops import given_out, with_stops
from anchorlm.evaluation.tasks._attacks import parse_attack, seeded
from anchorlm.evaluation.tasks._cases import Kind, load_cases
from anchorlm.evaluation.tasks._graders import RefusalGrader, is_correct
from anchorlm.guard import Guard, Recipe
from anchorlm.records import Message, Request, Response, TokenScore, UserError, prompt_key

_UNSERVED = ("logit_bias", "best_of")

_STOPS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "refusal": "content_filter",
                                 "tool_calls": "tool_calls"}  # fmt: skip


class GuardedModel(ModelAPI):
    """`anchorlm/RECIPE.toml`: the guarded model of a recipe.

    Requests under way at once share forwards. What the defense decided is in the output's metadata under `anchorlm`.

    Args:
        model_name: Path of the recipe.
        base_url: Not used: the model runs here.
        api_key: Not used.
        config: Inspect's defaults. What it does not say is the recipe's.
        **changes: `-M defense.alpha=0.7`: values to put over the recipe's.

    Raises:
        UserError: As `Guard.from_recipe`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **changes: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.guard = Guard.from_recipe(Recipe.load(Path(model_name), changes))
        self._asked: Counter[str] = Counter()

    @cached_property
    def _chosen_by(self) -> list[str]:
        return chosen_by(self.guard)

    def max_connections(self) -> int:
        """As many requests as share forwards well."""
        return 64

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """See `ModelAPI`.

        Raises:
            UserError: A schema is asked for, or tools that the chat template or the defense does not take.
        """
        if config.response_schema:
            raise UserError(
                "The response_schema of a task does not reach the guard: leave it out, or set response_format in the "
                "recipe's section generation."
            )
        if odd := [name for name in _UNSERVED if getattr(config, name, None)]:
            raise UserError(f"A guarded model has no {' and no '.join(odd)}: leave them out of the task's settings.")
        messages = [turn_of(one) for one in input]
        settings = _generation(config) | offered(tools, tool_choice, config.parallel_tool_calls)
        model, choices = self.guard.defense.target.model, config.num_choices or 1
        first = self.guard.request(messages, **settings)
        if len(model.encode(first.prompt, first.options)) >= model.context_length:
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
        seed = config.seed
        if seed is None:  # epochs are other samples of the same prompt
            key = prompt_key(messages)
            seed = self.guard.generation.seed + choices * self._asked[key]
            self._asked[key] += 1
        asked = [
            with_stops(self.guard.request(messages, **settings, seed=seed + number), config.stop_seqs)
            for number in range(choices)
        ]
        responses = [await wrap_future(runtime().submit(self.guard.respond(one))) for one in asked]
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(*pair) for pair in zip(asked, responses, strict=True)],
            usage=_usage(responses),
            metadata={
                "anchorlm": [_told(one, self.guard.defense.name) for one in responses],
                "anchorlm_chosen_by": self._chosen_by,
            },
        )

    def _choice(self, request: Request, response: Response) -> ChatCompletionChoice:
        text, reason = given_out(self.guard, request, response)
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, tool_calls=calls_of(response), model=self.model_name),
            stop_reason=_STOPS[reason],
            logprobs=None if response.scores is None else self._logprobs(response.scores, len(text.encode())),
        )

    def _logprobs(self, scores: Sequence[TokenScore], length: int) -> Logprobs:
        """Of the tokens that begin within the first bytes of the text."""
        token_bytes = self.guard.defense.target.model.vocabulary.token_bytes
        content: list[Logprob] = []
        at = 0
        for one in scores:
            if at >= length:
                break
            written = token_bytes(one.token)
            at += len(written)
            top = [
                TopLogprob(token=_name(token_bytes(token)), logprob=logprob, bytes=list(token_bytes(token)))
                for token, logprob in one.top
            ]
            content.append(
                Logprob(token=_name(written), logprob=one.logprob, bytes=list(written), top_logprobs=top or None)
            )
        return Logprobs(content=content)


@modelapi(name="anchorlm")
def anchorlm() -> type[ModelAPI]:
    """The provider that `--model anchorlm/RECIPE.toml` names."""
    return GuardedModel


@task
def prompts(
    file: str, label: Kind | None = None, attack: str = "none", limit: int | None = None, seed: int = 0
) -> Task:
    """The prompts of a file, under an attack where they are harmful, graded by outcome.

    Args:
        file: As `load_cases` reads it.
        label: Of all prompts, where the file does not say.
        attack: A static one, as `parse_attack` reads it.
        limit: Only the first prompts.
        seed: Of the attack.

    Raises:
        UserError: As `load_cases` and `parse_attack`, or an attack that takes more than a prompt.
    """
    chosen = parse_attack(attack)
    if chosen.search is not None or chosen.ablation is not None:
        raise UserError(f"The attack {attack!r} takes more than a prompt: run it with `anchorlm compare`.")
    samples = []
    cases = load_cases(file, kind=label)[:limit]
    if len({case.kind == "task" for case in cases}) > 1:
        raise UserError(f"{file!r} mixes tasks with other prompts, which are scored by other names: split the file.")
    for case in cases:
        messages = (
            chosen.rewrite(case.messages, seeded(seed, attack, case.id)) if case.kind == "harmful" else case.messages
        )
        samples.append(
            Sample(
                input=[_chat_message(one) for one in messages],
                target=case.answer or "",
                id=case.id,
                metadata={"kind": case.kind, "category": case.category, "form": case.form, "labels": list(case.labels)},
            )
        )
    return Task(dataset=MemoryDataset(samples, name=Path(file).name), solver=generate(), scorer=outcomes())


@scorer(metrics={"*": [mean(), stderr()]})
def outcomes() -> Scorer:
    """Refused, complied, broken, and for a task whether it was solved: each 1 or 0, so means are rates.

    Where the refusal matcher has decided for the guard, as its judge or while its artifact was made, every score says
    that it is no measurement.
    """
    grader = RefusalGrader()

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        outcome = grader.outcome(text)
        value: dict[str, float] = {word: float(word == outcome) for word in ("refused", "complied", "broken")}
        if state.metadata.get("kind") == "task":
            value["solved"] = float(_solved(state, target.text, text))
        explanation = f"{outcome}, by the refusal matcher"
        biased = MATCHER in (state.output.metadata or {}).get("anchorlm_chosen_by", ())
        if biased:
            explanation += ", which also chose for this guard: no measurement; score it by another"
        return Score(value=dict(value), answer=text, explanation=explanation, metadata={"biased": biased})

    return score


def _solved(state: TaskState, answer: str, text: str) -> bool:
    from anchorlm.evaluation.tasks._cases import Case

    labels = tuple(state.metadata["labels"])
    return is_correct(Case("", (), "task", answer=answer, form=state.metadata["form"], labels=labels), text)


def _chat_message(one: Message) -> ChatMessage:
    if one["role"] == "system":
        return ChatMessageSystem(content=one["content"])
    if one["role"] == "assistant":
        return ChatMessageAssistant(content=one["content"])
    return ChatMessageUser(content=one["content"])


def _generation(config: GenerateConfig) -> dict[str, Any]:
    """Inspect's settings under our names. Those that it leaves open are the recipe's."""
    same = ("top_p", "top_k", "presence_penalty", "frequency_penalty")
    found: dict[str, Any] = {"max_new_tokens": config.max_tokens} | {name: getattr(config, name) for name in same}
    if config.logprobs:
        found["logprobs"] = config.top_logprobs or 0
    if config.temperature is not None:
        found["do_sample"] = config.temperature > 0
        found["temperature"] = config.temperature or None
    return {name: value for name, value in found.items() if value is not None}


def _name(written: bytes) -> str:
    return written.decode("utf-8", errors="replace")


def _usage(responses: list[Response]) -> ModelUsage:
    read = sum(one.usage.prompt_tokens for one in responses)
    written = sum(one.usage.generated_tokens for one in responses)
    return ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _told(response: Response, defense: str) -> dict[str, Any]:
    trace = [{"kind": decision.kind, **decision.data} for decision in response.trace]
    return {"defense": defense, "finish_reason": response.finish_reason, "trace": trace}
