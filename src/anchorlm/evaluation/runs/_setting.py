from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from anchorlm.evaluation.runs._contestants import Contestant, Pool, contestants
from anchorlm.evaluation.runs._recipe import CompareRecipe
from anchorlm.evaluation.runs._sets import require_files
from anchorlm.evaluation.runs._stored import Key
from anchorlm.evaluation.tasks._attacks import attack_data, attack_label
from anchorlm.evaluation.tasks._cases import Case, digest
from anchorlm.records import data_digest


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that a run compares.

    Attributes:
        recipe: What was asked for.
        contestants: Its defenses, with what is swept spread out.
        cases: The prompts by target and name of their set.
    """

    recipe: CompareRecipe
    contestants: Sequence[Contestant]
    cases: Mapping[str, Mapping[str, Sequence[Case]]]

    @classmethod
    def of(cls, recipe: CompareRecipe, pool: Pool) -> Self:
        """What a recipe compares, with its prompts read.

        Raises:
            UserError: A mistake in the recipe or in its files.
        """
        require_files(recipe.data | recipe.fitted_on)
        cases = {
            target: {name: pool.cases(name, one, target, recipe.limit) for name, one in recipe.data.items()}
            for target in recipe.targets
        }
        return cls(recipe, contestants(recipe), cases)

    def attacks(self, case: Case) -> Sequence[str]:
        """What is done to a prompt: the attacks where it is harmful, nothing elsewhere."""
        return list(map(attack_label, self.recipe.attacks)) if case.kind == "harmful" else ("none",)

    @property
    def keys(self) -> set[Key]:
        """The answers that there will be."""
        return {
            (target, one.label, name, attack, case.id)
            for target, sets in self.cases.items()
            for name, cases in sets.items()
            for case in cases
            for attack in self.attacks(case)
            for one in self.contestants
        }

    @property
    def expected(self) -> int:
        """How many answers there will be."""
        return len(self.keys)

    @property
    def run(self) -> str:
        """What every answer says it belongs to: the recipe, and what its files hold."""
        about = self.data
        return data_digest(json.dumps(about[name]) for name in ("digest", "data", "attacks"))

    @property
    def data(self) -> dict[str, Any]:
        """As plain JSON data, from which tables can be made without a model."""
        files = {attack_label(spec): attack_data(spec) for spec in self.recipe.attacks}
        return {
            "digest": self.recipe.digest,
            "attacks": {name: one for name, one in files.items() if one is not None},
            "recipe": self.recipe.model_dump(mode="json"),
            "expected": self.expected,
            "defenses": [
                {"label": one.label, "defense": one.defense, "knobs": dict(one.knobs), "swept": one.swept}
                for one in self.contestants
            ],
            "data": {
                target: {
                    name: {"digest": digest(cases), "n": len(cases), "kinds": sorted({case.kind for case in cases})}
                    for name, cases in sets.items()
                }
                for target, sets in self.cases.items()
            },
        }
