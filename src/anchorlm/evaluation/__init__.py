"""Evaluation: what a defense costs and what it buys."""

from anchorlm.evaluation._attacks import Attack, attack_names, parse_attack
from anchorlm.evaluation._cases import Case, Half, halves, load_cases
from anchorlm.evaluation._contestants import Embedded
from anchorlm.evaluation._english import EnglishGrader, HarmGrader
from anchorlm.evaluation._figures import Figures, Row, figures
from anchorlm.evaluation._graders import Grader, JudgeGrader, RefusalGrader, TruthGrader, is_correct
from anchorlm.evaluation._overlaps import Overlap, overlaps
from anchorlm.evaluation._recipe import CompareRecipe, OwnPrompts, Part, parse_sweep
from anchorlm.evaluation._report import write_report
from anchorlm.evaluation._run import Progress, compare
from anchorlm.evaluation._sets import own_prompts
from anchorlm.evaluation._statistics import (
    Agreement,
    Estimate,
    Paired,
    agreement,
    bootstrap,
    mcnemar,
    pareto,
    similarity,
)
from anchorlm.evaluation._tables import latex, markdown, summary, write_costs, write_tables
from anchorlm.evaluation._tasks import WORDINGS, answer_line

__all__ = [
    "WORDINGS",
    "Agreement",
    "Attack",
    "Case",
    "CompareRecipe",
    "Embedded",
    "EnglishGrader",
    "Estimate",
    "Figures",
    "Grader",
    "Half",
    "HarmGrader",
    "JudgeGrader",
    "Overlap",
    "OwnPrompts",
    "Paired",
    "Part",
    "Progress",
    "RefusalGrader",
    "Row",
    "TruthGrader",
    "agreement",
    "answer_line",
    "attack_names",
    "bootstrap",
    "compare",
    "figures",
    "halves",
    "is_correct",
    "latex",
    "load_cases",
    "markdown",
    "mcnemar",
    "overlaps",
    "own_prompts",
    "pareto",
    "parse_attack",
    "parse_sweep",
    "similarity",
    "summary",
    "write_costs",
    "write_report",
    "write_tables",
]
