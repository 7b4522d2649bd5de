"""The front hall: a target with a defense around it."""

from anchorlm.guard._check import gaps
from anchorlm.guard._guard import Guard
from anchorlm.guard._judges import build_judge
from anchorlm.guard._recipe import EngineSettings, JudgeSettings, Recipe, put

__all__ = ["EngineSettings", "Guard", "JudgeSettings", "Recipe", "build_judge", "gaps", "put"]
