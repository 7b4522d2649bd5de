from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anchorlm.defenses import find_defense
from anchorlm.evaluation.runs._recipe import CompareRecipe, DataSettings
from anchorlm.evaluation.runs._sets import read_set
from anchorlm.evaluation.tasks._cases import Case
from anchorlm.evaluation.tasks._english import EnglishGrader, HarmGrader
from anchorlm.evaluation.tasks._graders import Grader, JudgeGrader, RefusalGrader, TruthGrader, is_correct
from anchorlm.guard import Guard
from anchorlm.judging import ENGLISH, HARM, Judge, Scorer
from anchorlm.models import REAL, SHIPPED, ModelSettings, located
from anchorlm.records import UserError
from anchorlm.team import JudgeSettings, ScorerSettings, build_judge, build_scorer, require_leave

if TYPE_CHECKING:
    from anchorlm.engine import LocalEngine

Role = TypeVar("Role", JudgeSettings, ScorerSettings)

EMBEDDED = "embedded:"
"""How a recipe begins the path of an embedded model."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is to be known about embedded models and their prompts. Given by whoever knows them.

    Attributes:
        path: Folder of a model by its name.
        cases: Prompts of a split for a target: (split, target's path, partition, how many, seed).
        outcome: The true outcome of a response to one of these prompts.
        correct: Whether a response to one of these tasks solves it.
    """

    path: Callable[[str], Path]
    cases: Callable[[str, str, str, int, int], list[Case]]
    outcome: Callable[[Case, str], str]
    correct: Callable[[Case, str], bool]


EMBEDDED_PROMPTS = 400
"""Of each split, without a limit."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A defense with its knobs.

    Attributes:
        label: What the tables call it.
        defense: Name of the defense.
        knobs: What differs from its defaults.
        anchor: Its anchor, if it takes one.
        judge: Its judge, if it takes one.
        cost: Its cost model, if it takes one.
        reward: Its reward model, if it takes one.
        swept: The knob that makes it one of several, and its value.
    """

    label: str
    defense: str
    knobs: Mapping[str, Any]
    anchor: ModelSettings | None
    judge: JudgeSettings | None
    cost: ScorerSettings | None = None
    reward: ScorerSettings | None = None
    swept: tuple[str, float] | None = None


def contestants(recipe: CompareRecipe) -> list[Contestant]:
    """Every defense of a recipe, once for each value of a knob that is swept. All knobs are checked here.

    Raises:
        UserError: An unknown defense or knob, a missing anchor or judge, or a sweep of a knob that none of them has.
    """
    require_leave(recipe.judge, recipe.cost, recipe.reward, *recipe.grader.values())
    found: list[Contestant] = []
    for label, section in recipe.defenses.items():
        name = str(section.get("name", label))
        kind = find_defense(name)
        knobs = {key: value for key, value in section.items() if key not in ("name", "anchor", "judge")}
        anchor, judge = _roles(recipe, label, section)
        # What it can do without is there if its own section names it.
        guided = kind.needs.requires("anchor") or (kind.needs.anchor is not None and "anchor" in section)
        judged = kind.needs.requires("judge") or (kind.needs.judge and "judge" in section)
        for wanted, given, role in (
            (guided, anchor, "anchor"),
            (judged, judge, "judge"),
            (kind.needs.cost, recipe.cost, "cost"),
            (kind.needs.reward, recipe.reward, "reward"),
        ):
            if wanted and given is None:
                raise UserError(f"The defense {label} cannot do without a model as {role}: add a section [{role}].")
        plain = Contestant(
            label,
            name,
            knobs,
            anchor if guided else None,
            judge if judged else None,
            recipe.cost if kind.needs.cost else None,
            recipe.reward if kind.needs.reward else None,
        )
        swept = [
            replace(plain, label=f"{label} {knob}={value:g}", knobs={**knobs, knob: value}, swept=(knob, value))
            for knob, values in recipe.sweep.items()
            if knob in kind.settings_type.model_fields
            for value in values
        ]
        for one in swept or [plain]:
            kind.settings_type.parse(one.knobs, where=f"the defense {one.label}")
            found.append(one)
    labels = [one.label for one in found]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"Two defenses would be called {twice!r}: sweep each value once, six digits of it apart, and "
                        "give each section a label of its own.")  # fmt: skip
    known = {one.swept[0] for one in found if one.swept}
    for knob in recipe.sweep:
        if knob not in known:
            raise UserError(f"None of the defenses has a knob {knob!r} to sweep: {', '.join(recipe.defenses)}.")
    return found


def _roles(
    recipe: CompareRecipe, label: str, section: Mapping[str, Any]
) -> tuple[ModelSettings | None, JudgeSettings | None]:
    own = section.get("anchor")
    if not isinstance(own, str | Mapping | None):
        raise UserError(f"The anchor of {label} is {own!r}: give a path, or a section that describes a model.")
    anchor = recipe.anchor if own is None else ModelSettings.parse(
        {"path": own} if isinstance(own, str) else own, where=f"the anchor of {label}")  # fmt: skip
    own = section.get("judge")
    return anchor, recipe.judge if own is None else JudgeSettings.parse(own, where=f"the judge of {label}")


class Pool:
    """The models of a run, each loaded when it is first needed and once.

    Args:
        recipe: Says what they are.
        folder: Of the run.
        embedded: Knows the embedded ones, if the recipe names any.

    Attributes:
        folder: Of the run.
    """

    def __init__(self, recipe: CompareRecipe, folder: Path, embedded: Embedded | None = None) -> None:
        self._recipe = recipe
        self.folder = folder
        self._embedded = embedded
        self._engines: dict[str, LocalEngine] = {}
        self._judges: dict[str, Judge] = {}
        self._scorers: dict[str, Scorer] = {}

    def engine(self, settings: ModelSettings) -> LocalEngine:
        """The engine of a model.

        Raises:
            UserError: It cannot be loaded.
        """
        from anchorlm.engine import LocalEngine
        from anchorlm.models import CausalModel

        key = settings.model_dump_json()
        if key not in self._engines:
            limits = self._recipe.engine.model_dump()
            self._engines[key] = LocalEngine(CausalModel.load(self.located(settings)), **limits)
        return self._engines[key]

    def attacked(self, target: str, artifact: str) -> LocalEngine:
        """A target from which the direction that an artifact of InferAligner found in it is taken out everywhere.

        Raises:
            UserError: No such artifact, or one of another model.
        """
        from anchorlm.defenses.inferaligner import Aligner
        from anchorlm.engine import LocalEngine

        plain = self.engine(self._recipe.targets[target])
        key = f"{target} without {artifact}"
        if key not in self._engines:
            base = Aligner.load(self.placed(artifact, target), plain).ablation()
            self._engines[key] = LocalEngine(plain.model, **self._recipe.engine.model_dump(), base=base)
        return self._engines[key]

    def release(self, target: str) -> None:
        """Forgets a target, so that the next one has its memory."""
        own = self._recipe.targets[target].model_dump_json()
        self._engines = {k: v for k, v in self._engines.items() if k != own and not k.startswith(f"{target} without ")}

    def forget(self) -> None:
        """Lets no engine start from what it read before: defenses answer the same prompts, and their times compare."""
        for engine in self.engines():
            engine.prefixes.clear()

    def engines(self) -> list[LocalEngine]:
        """Those that are loaded."""
        return list(self._engines.values())

    def forwards(self) -> int:
        """Forwards of all models so far, classifiers among the judges and scorers too."""
        others = (*self._judges.values(), *self._scorers.values())
        return sum(engine.runner.forwards for engine in self.engines()) + sum(
            getattr(one, "forwards", 0) for one in others
        )

    def judge(self, settings: JudgeSettings) -> Judge:
        """A judge. One and the same for equal settings."""
        key = settings.model_dump_json()
        if key not in self._judges:
            local = self._local(settings)
            runs = settings.kind in ("rubric", "guard")
            engine = self.engine(settings.model) if runs and settings.model is not None else None
            self._judges[key] = build_judge(local, engine)
        return self._judges[key]

    def scorer(self, settings: ScorerSettings) -> Scorer:
        """A cost or reward model. One and the same for equal settings."""
        key = settings.model_dump_json()
        if key not in self._scorers:
            local = self._local(settings)
            judged = settings.judged
            grader = self.engine(settings.model) if settings.kind == "rubric" and settings.model else None
            self._scorers[key] = build_scorer(local, None if judged is None else self.judge(judged), grader)
        return self._scorers[key]

    def guard(self, target: str, contestant: Contestant, without: str | None = None) -> Guard:
        """A contestant around a target.

        Args:
            target: Its name.
            contestant: The defense.
            without: Artifact whose direction an attack takes out of the target.

        Raises:
            UserError: They do not fit.
        """
        plain = self._recipe.targets[target]
        return Guard(
            self.engine(plain) if without is None else self.attacked(target, without),
            contestant.defense,
            anchor=None if contestant.anchor is None else self.engine(contestant.anchor),
            judge=None if contestant.judge is None else self.judge(contestant.judge),
            cost=None if contestant.cost is None else self.scorer(contestant.cost),
            reward=None if contestant.reward is None else self.scorer(contestant.reward),
            generation=self._recipe.generation,
            probes=self._recipe.probe,
            **self.knobs(target, contestant),
        )

    def knobs(self, target: str, contestant: Contestant) -> dict[str, Any]:
        """The knobs of a contestant around one target: its artifact, say."""
        return {k: self.placed(v, target) if isinstance(v, str) else v for k, v in contestant.knobs.items()}

    def artifacts(self, target: str, contestant: Contestant) -> dict[str, str]:
        """Folders of the fitted artifacts that a contestant uses around a target, or may find beside it, by knob."""
        knobs = self.knobs(target, contestant)
        kind = find_defense(contestant.defense)
        used = {knob: knobs[knob] for knob in kind.artifacts if isinstance(knobs.get(knob), str)}
        settings = kind.settings_type.parse(knobs, where=contestant.label)
        if getattr(settings, "gate", None) == "auto":
            found = {knob: self._beside(target, kind.artifacts[knob]) for knob in kind.beside}
            used = {knob: place for knob, place in found.items() if place is not None} | used
        return used

    def fitted(self, contestant: Contestant) -> list[str]:
        """The same around whichever target."""
        each = (self.artifacts(target, contestant).values() for target in self._recipe.targets)
        return list(dict.fromkeys(place for places in each for place in places))

    def _beside(self, target: str, name: str) -> str | None:
        """The artifact in a target's own folder, its adapter's first. It may turn out not to fit."""
        settings = self.located(self._recipe.targets[target])
        places = [Path(located(place)) / name for place in (settings.adapter, settings.path) if place]
        return next((str(place) for place in places if (place / "artifact.json").is_file()), None)

    def placed(self, text: str, target: str) -> str:
        """A path of the recipe with its places filled in, for one target."""
        text = text.replace("{target}", target).replace("{out}", str(self.folder))
        if not text.startswith(EMBEDDED):
            head, slash, rest = text.partition("/")  # a folder in that of a shipped model is called by the model's name
            return str(SHIPPED / head / rest) if slash and head.startswith(REAL) and (SHIPPED / head).is_dir() else text
        name, _, rest = text.removeprefix(EMBEDDED).partition("/")
        return str(self._known().path(name) / rest)

    def located(self, settings: ModelSettings) -> ModelSettings:
        """The settings with the folder of an embedded model in place of its name."""
        if not settings.path.startswith(EMBEDDED):
            return settings
        return settings.model_copy(update={"path": str(self._known().path(settings.path.removeprefix(EMBEDDED)))})

    def _local(self, settings: Role) -> Role:
        """The settings of a judge or a scorer, with its models as `located` gives them."""
        found: dict[str, Any] = {} if settings.model is None else {"model": self.located(settings.model)}
        first = getattr(settings, "first", None)
        if first is not None and first.model is not None:
            found["first"] = first.model_copy(update={"model": self.located(first.model)})
        return settings.model_copy(update=found)

    def cases(self, name: str, settings: DataSettings, target: str, limit: int | None) -> list[Case]:
        """The prompts of one set for one target.

        Raises:
            UserError: They cannot be read, or there are none.
        """
        most = min((n for n in (settings.limit, limit) if n is not None), default=None)
        if settings.embedded is None:
            return read_set(name, settings)[:most]
        path = self._recipe.targets[target].path.removeprefix(EMBEDDED)
        return self._known().cases(
            str(settings.embedded), path, settings.partition, most or EMBEDDED_PROMPTS, self._recipe.seed
        )

    def graders(self) -> list[Grader]:
        """The graders, the one that counts first.

        Raises:
            UserError: One that the recipe does not describe.
        """
        found: list[Grader] = []
        for name in self._recipe.graders:
            if name == "refusal":
                found.append(RefusalGrader())
            elif name == "truth":
                found.append(TruthGrader(self._known().outcome))
            elif name in self._recipe.grader:
                settings = self._recipe.grader[name]
                found.append(JudgeGrader(name, self.judge(settings.judge), settings.threshold))
            elif name in (ENGLISH, HARM):
                found.append(EnglishGrader() if name == ENGLISH else HarmGrader())
            else:
                known = ", ".join(["refusal", ENGLISH, HARM, "truth", *self._recipe.grader])
                raise UserError(f"There is no grader {name!r}: describe it in a section [grader.{name}], or take one "
                                f"of {known}.")  # fmt: skip
        return found

    def correct(self, case: Case, settings: DataSettings, text: str) -> bool:
        """Whether a task was solved."""
        return self._known().correct(case, text) if settings.embedded is not None else is_correct(case, text)

    def _known(self) -> Embedded:
        if self._embedded is None:
            raise UserError("This recipe names embedded models or prompts: run it with `anchorlm compare`.")
        return self._embedded
