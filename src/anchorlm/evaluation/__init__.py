"""Evaluation: what a defense costs and what it buys."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_attacks": "Attack attack_names parse_attack",
            "_cases": "Case Half halves load_cases",
            "_contestants": "Embedded",
            "_english": "EnglishGrader HarmGrader",
            "_figures": "Figures Row figures",
            "_graders": "Grader JudgeGrader RefusalGrader TruthGrader is_correct",
            "_overlaps": "Overlap overlaps",
            "_recipe": "CompareRecipe OwnPrompts Part parse_sweep",
            "_report": "write_report",
            "_run": "Progress compare",
            "_sets": "own_prompts",
            "_statistics": "Agreement Estimate Paired agreement bootstrap mcnemar pareto similarity",
            "_tables": "latex markdown summary write_costs write_tables",
            "_tasks": "WORDINGS answer_line",
        },
    )

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
