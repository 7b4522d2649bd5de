"""The LM Evaluation Harness on guarded models: importing this registers the model `anchorlm` with `lm_eval`.

python -m anchorlm.evaluation.lm_harness --model anchorlm --model_args recipe=my.toml --tasks gsm8k
"""

from __future__ import annotations

from asyncio import gather
from collections.abc import Sequence
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from anchorlm.engine import runtime
from anchorlm.evaluation.runs._exclusion import chosen_by
from anchorlm.evaluation.runs._stops import given_out, with_stops
from anchorlm.guard import Guard, Recipe
from anchorlm.models import CausalModel
from anchorlm.records import DefenseError, UserError

_HARNESS = frozenset({"batch_size", "max_batch_size", "device"})
"""What the harness says to every model. Here the recipe says it."""


@register_model("anchorlm")
class GuardedLM(LM):  # type: ignore[misc]
    """The guarded model of a recipe. Generation goes through the guard.

    Log-likelihoods cannot: a defense decides about answers, and gives probabilities to no text that others wrote. They
    are refused, unless `loglikelihood="undefended"` says that the bare target's will do: what it costs the target's
    knowledge to be fine-tuned can be measured so, what a defense costs cannot.

    Args:
        recipe: The recipe's TOML file.
        loglikelihood: `refuse`, or `undefended` for the target's own.
        concurrency: Requests under way at once.

    Raises:
        UserError: As `Guard.from_recipe`, or another word for `loglikelihood`.
    """

    def __init__(
        self,
        recipe: str,
        loglikelihood: Literal["refuse", "undefended"] = "refuse",
        concurrency: int = 64,
        **others: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(others.keys() - _HARNESS):
            raise UserError(
                f"The model anchorlm has no argument {unknown[0]!r}: it has recipe, loglikelihood and concurrency."
            )
        if loglikelihood not in ("refuse", "undefended"):
            raise UserError(f"loglikelihood = {loglikelihood!r} is not known; it is refuse or undefended.")
        self.guard = Guard.from_recipe(Recipe.load(recipe))
        self._undefended = loglikelihood == "undefended"
        self._concurrency = concurrency
        self._defense = self.guard.defense.name

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache."""
        return self._target.name

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's results: what has decided for this guard, and so must grade none of its answers."""
        return {"anchorlm_defense": self._defense, "anchorlm_chosen_by": chosen_by(self.guard)}

    @property
    def _target(self) -> CausalModel:
        return self.guard.defense.target.model

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to the contexts, each one turn of the user, judged and cut as the server does where the task says.

        Raises:
            UserError: A prompt that is too long.
            DefenseError: The defense failed and may not refuse.
        """
        asked = []
        for request in requests:
            context, options = request.args
            one = self.guard.request([{"role": "user", "content": context}], **_generation(dict(options)))
            asked.append(with_stops(one, options.get("until")))
        answers = [""] * len(asked)
        for index, outcome in self.guard.map(asked, concurrency=self._concurrency):
            if isinstance(outcome, UserError | DefenseError):
                raise outcome
            answers[index], _ = given_out(self.guard, asked[index], outcome)
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The bare target's log-probability (nats) of each continuation, and whether it is what it would say.

        Raises:
            UserError: It was not agreed to.
        """
        self._agreed()
        return runtime().run(self._likelihoods([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The bare target's log-probability (nats) of each text after its first token.

        Raises:
            UserError: It was not agreed to, or a text is longer than the model reads.
        """
        self._agreed()
        texts = [str(request.args[0]) for request in requests]
        ids = [self._target.encode(text) for text in texts]
        found = runtime().run(self._all([(one[:1], one[1:]) for one in ids]))
        return [total for total, _ in found]

    def _agreed(self) -> None:
        if not self._undefended:
            raise UserError(
                f"This task asks for log-likelihoods, to which the defense {self._defense} says nothing: choose a task "
                "that generates, or take the bare target's with loglikelihood=undefended."
            )

    async def _likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        split = []
        for context, continuation in pairs:
            whole = self._target.encode(context + continuation)
            known = self._target.encode(context) if context.strip() else whole[:1]
            split.append((whole[: len(known)], whole[len(known) :]))
        return await self._all(split)

    async def _all(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        return list(await gather(*(self._likelihood(*pair) for pair in pairs)))

    async def _likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        total, greedy = 0.0, True
        async with self.guard.defense.target.open(context, room=len(continuation)) as row:
            for token in continuation:
                logits = await row.logits()
                total += float(logits.log_softmax(dim=-1)[token])
                greedy = greedy and int(logits.argmax()) == token
                row.append([token])
        return total, greedy


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """The harness's settings under our names."""
    found: dict[str, Any] = {"do_sample": bool(options.get("do_sample", False))}
    if (most := options.get("max_gen_toks", options.get("max_new_tokens"))) is not None:
        found["max_new_tokens"] = int(most)
    if found["do_sample"]:
        found |= {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name)}
    return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
