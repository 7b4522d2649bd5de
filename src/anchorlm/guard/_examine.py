from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from anchorlm.defenses import Defense, find_defense
from anchorlm.guard._check import faults
from anchorlm.guard._findings import Findings
from anchorlm.guard._formats import calls_gap, check_format, format_gap
from anchorlm.guard._look import look_at_thoughts
from anchorlm.guard._outline import rehearse
from anchorlm.guard._recipe import Recipe
from anchorlm.guard._tools import cannot_vouch, look_at_tools
from anchorlm.judging import Judge, Scorer
from anchorlm.models import EndpointSettings, ModelSettings, VLLMSettings
from anchorlm.records import Access, Artifact, GenerationSettings
from anchorlm.steering import uncalibrated
from anchorlm.team import JudgeSettings, ScorerSettings, Team, build_judge, build_scorer

if TYPE_CHECKING:
    from anchorlm.models import CausalModel, EndpointModel

    Model = CausalModel | EndpointModel


def examine(recipe: Recipe, ready: Callable[[], None] = lambda: None) -> Findings:
    """Every gap between a recipe and its models, found from configurations and tokenizers alone.

    Where the recipe is wrong by itself, its models are not looked at: that would take seconds.

    Args:
        recipe: What to look at.
        ready: Called before the models are looked at.
    """
    found = Findings(gaps=[f"{part}: {why}" for part, why in faults(recipe)])
    if found.gaps:
        found.notes.append("models: not looked at yet. Fix the recipe, and check again.")
        return found
    ready()
    target = _model(found, "target", recipe.target)
    anchor = _model(found, "anchor", recipe.anchor) if recipe.anchor else None
    judge = _judge(found, recipe, recipe.judge) if recipe.judge else None
    if target is not None:
        look_at_thoughts(found, target, recipe.thoughts)
        look_at_tools(found, target)
    _defense(found, recipe, find_defense(recipe.defense["name"]), target, anchor, judge)
    lengths(found, recipe.generation.max_new_tokens, target=target, anchor=anchor)
    return found


def lengths(found: Findings, longest: int, *, target: Model | None, anchor: Model | None) -> None:
    """Whether prompts and answers fit into what the models read."""
    if target is not None and longest >= target.context_length:
        found.gaps.append(
            f"generation: max_new_tokens = {longest} leaves no room for a prompt in the {target.context_length} tokens "
            "that the target reads; lower it."
        )
    if target is not None and anchor is not None and anchor.context_length < target.context_length:
        found.notes.append(
            f"anchor: it reads {anchor.context_length} tokens and the target {target.context_length}; longer prompts "
            "will be turned down."
        )


def _defense(
    found: Findings,
    recipe: Recipe,
    defense: type[Defense],
    target: Model | None,
    anchor: Model | None,
    judge: Judge | None,
) -> None:
    """Where the models are known, what the defense finds in them and asks of them."""
    knobs = recipe.knobs
    for name, kind in defense.artifacts.items():
        if name in defense.beside or kind == "inferaligner":
            continue  # read where the defense is prepared
        # Whether they belong to these weights and scorers is seen when those are loaded.
        if name in knobs and not defense.settings_type.model_fields[name].is_required():
            found.attempt(name, partial(Artifact.load, knobs.pop(name), kind))
    scorers = {
        kind: found.attempt(kind, partial(_scorer, source, found, recipe, kind))
        for kind, source in (("cost", recipe.cost), ("reward", recipe.reward))
        if source is not None
    }
    if None in scorers.values():
        return
    reads = not {knobs.get("reader"), knobs.get("gate_reader")}.isdisjoint(("anchor", "both"))
    if knobs.get("artifact") is not None and not _artifact(found, knobs["artifact"], target, reads):
        return
    needs = defense.needs
    missing = (needs.requires("anchor") and anchor is None) or (needs.requires("judge") and judge is None)
    if target is None or missing or (needs.cost and not scorers):
        return
    outline = found.outline(target, recipe.engine)
    team = Team(outline, None if anchor is None else found.outline(anchor, recipe.engine), judge, **scorers)
    if gaps := needs.gaps(defense.name, team.offer):  # seen where a server was asked
        found.gaps += [f"defense: {gap}" for gap in gaps]
        return
    built = found.attempt("defense", lambda: defense(team, **knobs))
    if built is not None:
        found.facts += [f"defense: {fact}" for fact in built.facts]
        _formats(found, built, recipe.generation)
        _calls(found, built)
        found.attempt("engine", lambda: asyncio.run(rehearse(built, judge, outline, recipe.generation)))


def _calls(found: Findings, defense: Defense) -> None:
    """Whether tools may be called, and calls can be required."""
    if found.thoughts.get("tools") != "calls":
        return
    if not defense.vouches(defense.settings):
        found.notes.append(f"tools: {cannot_vouch(defense.name)}")
    elif gap := calls_gap(defense):
        found.notes.append(f"tools: no call can be required, and none is held to its schema, because {gap}")
    else:
        found.facts.append("tools: a call can be required, and is then held to its schema")


def _formats(found: Findings, defense: Defense, generation: GenerationSettings) -> None:
    """Whether answers can be held to a response format, and to that of the recipe, if it has one."""
    gap = format_gap(defense)
    if generation.response_format is not None:
        found.attempt("generation", lambda: check_format(defense, generation))
    elif gap is not None:
        found.notes.append(f"response_format: {gap}")
    if gap is None:
        here = "every answer can be held to json_object and json_schema"
        there = "if the target's server holds to it, which is tried when a request first asks for it"
        found.facts.append(f"response_format: {there if Access.LOGITS not in defense.target.access else here}")


def _scorer(settings: ScorerSettings, found: Findings, recipe: Recipe, role: str) -> Scorer | None:
    """The scorer without weights; a judge that is turned into a cost is taken as it is described."""
    from anchorlm.judging import RefusalMatcher

    _tell_code(found, settings.function)
    if settings.kind == "guard" and settings.judged is not None:
        guard = _judge(found, recipe, settings.judged)
        return None if guard is None else build_scorer(settings, guard, weights=False)
    if settings.kind == "rubric" and settings.model is not None:
        grader = _model(found, role, settings.model)
        return None if grader is None else build_scorer(settings, None, found.outline(grader, recipe.engine))
    return build_scorer(settings, None if settings.judge is None else RefusalMatcher(), weights=False)


def _tell_code(found: Findings, function: str | None) -> None:
    if function is not None:
        found.notes.append(f"code: {function} was not looked at, and runs only where a command says --allow-code.")


def _artifact(found: Findings, folder: str, target: Model | None, reads: bool) -> bool:
    """Whether there is an artifact, and one for a model like the target as far as its configuration tells."""
    from anchorlm.models import stamp

    artifact = found.attempt("artifact", lambda: Artifact.load(folder))
    if artifact is None:
        return False
    models = ", ".join(f"{role} {one.name}" for role, one in artifact.models.items())
    found.facts.append(f"artifact: {folder} ({artifact.kind}, fitted on: {models})")
    calibrated = artifact.figures.get("calibration", {})
    if (caveat := uncalibrated(artifact)) is not None:
        found.notes.append(f"artifact: {caveat}")
    elif artifact.kind == "inferaligner" and reads and "read by the anchor" not in calibrated:
        found.notes.append(
            "artifact: of the gate that reads the anchor, layers and bias are first guesses; choose them with "
            "`anchorlm calibrate inferaligner --reader`."
        )
    if target is None:
        return False
    known = stamp(target)
    if not (known.files and artifact.models["target"].files):
        compared = "architecture, tokenizer, chat template"
        compared += " and the shapes of the weights" if known.shapes and artifact.models["target"].shapes else ""
        found.notes.append(
            f"artifact: {compared} were compared with the target's; whether its weights are the same is seen when it "
            "is loaded."
        )
    before = len(found.gaps)
    found.attempt("artifact", lambda: artifact.require("target", known))
    return len(found.gaps) == before


def _model(found: Findings, role: str, settings: ModelSettings) -> Model | None:
    if isinstance(settings, EndpointSettings):
        return _endpoint(found, role, settings)
    if isinstance(settings, VLLMSettings):
        return _in_vllm(found, role, settings)
    from anchorlm.engine import attention_windows
    from anchorlm.models import CausalModel

    model = found.attempt(role, lambda: CausalModel.outline(settings))
    if model is None:
        return None
    found.attempt(role, lambda: attention_windows(model))
    size = sum(parameter.numel() for parameter in model.model.parameters())
    found.facts.append(
        f"{role}: {model.name} ({model.model.config.model_type}, {_count(size)} parameters, {model.vocabulary.size:,} "
        f"tokens, reads {model.context_length:,})"
    )
    if not model.stop_ids:
        found.notes.append(f"{role}: no token ends its turn, so every answer runs to max_new_tokens.")
    return model


def _endpoint(found: Findings, role: str, settings: EndpointSettings) -> EndpointModel | None:
    """A model behind an endpoint: its server is asked what it can do."""
    from anchorlm.engine import EndpointEngine

    engine = found.attempt(role, lambda: EndpointEngine.start(settings))
    if engine is None:
        return None
    found.engines.append(engine)
    found.facts.append(f"{role}: {engine.model.name} ({engine.told})")
    found.notes += [f"{role}: {note}" for note in engine.found.notes]
    if settings.context is None and engine.found.context is None:
        found.notes.append(f"{role}: its server does not say how many tokens it reads; give context.")
    if engine.lacks:
        found.notes.append(f"{role}: no anchor can guide it: {engine.lacks}.")
    return engine.model


def _in_vllm(found: Findings, role: str, settings: VLLMSettings) -> CausalModel | None:
    """A model that vLLM will run: it is not started, because that takes as long as the guard's own start."""
    from anchorlm.engine import VLLMEngine

    model = found.attempt(role, lambda: VLLMEngine.outline(settings))
    if model is None:
        return None
    found.in_vllm.append((model, settings.activations))
    found.facts.append(
        f"{role}: {model.name} ({model.model.config.model_type}, {model.vocabulary.size:,} tokens, reads "
        f"{model.context_length:,}), in vLLM, which starts with the guard"
    )
    found.notes.append(
        f"{role}: vLLM was not started: whether it knows your options, and the model fits into memory, is seen then."
    )
    return model


def _judge(found: Findings, recipe: Recipe, settings: JudgeSettings) -> Judge | None:
    from anchorlm.judging import RUBRIC

    for one in (settings, settings.first):
        _tell_code(found, one.function if one else None)
    if settings.kind not in ("rubric", "guard") or settings.model is None:
        return found.attempt("judge", lambda: build_judge(settings, None, weights=False))
    grader = _model(found, "judge", settings.model)
    if grader is None:
        return None
    if settings.kind == "guard":
        return found.attempt("judge", lambda: build_judge(settings, found.outline(grader, recipe.engine)))
    question = [{"role": "user", "content": str(settings.options.get("template", RUBRIC))}]
    rubric = found.attempt("judge", lambda: grader.encode(question))
    longest = recipe.generation.max_new_tokens
    if rubric is not None and (needed := len(rubric) + longest) >= grader.context_length:
        found.gaps.append(
            f"judge: the rubric and an answer of max_new_tokens = {longest} take {needed} tokens, but "
            f"{grader.name} reads {grader.context_length}; lower max_new_tokens, or take another judge."
        )
        return None  # it could grade nothing, and would say so once more
    return found.attempt("judge", lambda: build_judge(settings, found.outline(grader, recipe.engine)))


def _count(size: int) -> str:
    return f"{size / 1e9:.2f}B" if size >= 1e9 else f"{size / 1e6:.1f}M"
