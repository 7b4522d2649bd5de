"""Compares two recipes on the same prompts: how often each refuses, with 95 % intervals.

python examples/compare_two_recipes.py

For whole comparisons, with attacks, graders and a report, use `anchorlm compare`.
"""

import tomllib

from anchorlm import Guard, Recipe
from anchorlm.records import wilson
from anchorlm.team import Started
from anchorlm.zoo import Item, Outcome, grade, items, path

BARE = f"""
defense = "undefended"

[target]
path = "{path("a-finance").as_posix()}"

[generation]
max_new_tokens = 48
"""

GUARDED = (
    BARE.replace("undefended", "safe_decoding")
    + f"""
[anchor]
path = "{path("a-chat").as_posix()}"
"""
)

SPLITS = {"harmful": "harmful-plain", "harmless": "harmless"}


def refused(guard: Guard, prompts: list[Item]) -> int:
    """How many prompts a guard refuses. All of them are answered side by side."""
    responses = guard.generate([one.prompt for one in prompts])
    pairs = zip(prompts, responses, strict=True)
    return sum(grade(one, response.text) is Outcome.REFUSED for one, response in pairs)


def main(n: int = 8) -> None:
    """A target that both recipes name is loaded once, because they share `started`."""
    started: Started = []
    for name, text in (("bare", BARE), ("safe decoding", GUARDED)):
        guard = Guard.from_recipe(Recipe.parse(tomllib.loads(text), where=f"the recipe {name}"), started=started)
        for kind, split in SPLITS.items():
            hits = refused(guard, items(split, partition="dev", n=n))
            low, high = wilson(hits, n)
            print(f"{name:13} refuses {hits} of {n} {kind} prompts ({100 * low:.0f} to {100 * high:.0f} %)")


if __name__ == "__main__":
    main()
