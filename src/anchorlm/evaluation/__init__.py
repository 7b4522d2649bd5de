"""Evaluation: what a defense costs and what it buys."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.evaluation.reports._figures import Figures, figures
    from anchorlm.evaluation.reports._report import write_report
    from anchorlm.evaluation.reports._rows import Row
    from anchorlm.evaluation.reports._statistics import (
        Agreement,
        Estimate,
        Paired,
        agreement,
        bootstrap,
        mcnemar,
        pareto,
        similarity,
    )
    from anchorlm.evaluation.reports._tables import latex, markdown, summary, write_costs, write_tables
    from anchorlm.evaluation.runs._contestants import Embedded
    from anchorlm.evaluation.runs._overlaps import Overlap, overlaps
    from anchorlm.evaluation.runs._recipe import CompareRecipe, OwnPrompts, Part, parse_sweep
    from anchorlm.evaluation.runs._run import Progress, compare
    from anchorlm.evaluation.runs._sets import own_prompts
    from anchorlm.evaluation.runs._shares import Crew, Share
    from anchorlm.evaluation.tasks._attacks import Attack, attack_names, parse_attack
    from anchorlm.evaluation.tasks._cases import Case, Half, halves, load_cases
    from anchorlm.evaluation.tasks._english import EnglishGrader, HarmGrader
    from anchorlm.evaluation.tasks._graders import Grader, JudgeGrader, RefusalGrader, TruthGrader, is_correct
    from anchorlm.evaluation.tasks._tasks import WORDINGS, answer_line
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "anchorlm.evaluation.tasks._attacks": "Attack attack_names parse_attack",
            "anchorlm.evaluation.tasks._cases": "Case Half halves load_cases",
            "anchorlm.evaluation.runs._contestants": "Embedded",
            "anchorlm.evaluation.tasks._english": "EnglishGrader HarmGrader",
            "anchorlm.evaluation.reports._figures": "Figures figures",
            "anchorlm.evaluation.reports._rows": "Row",
            "anchorlm.evaluation.tasks._graders": "Grader JudgeGrader RefusalGrader TruthGrader is_correct",
            "anchorlm.evaluation.runs._overlaps": "Overlap overlaps",
            "anchorlm.evaluation.runs._recipe": "CompareRecipe OwnPrompts Part parse_sweep",
            "anchorlm.evaluation.reports._report": "write_report",
            "anchorlm.evaluation.runs._run": "Progress compare",
            "anchorlm.evaluation.runs._sets": "own_prompts",
            "anchorlm.evaluation.runs._shares": "Crew Share",
            "anchorlm.evaluation.reports._statistics": "Agreement Estimate Paired agreement bootstrap mcnemar "
            "pareto similarity",
            "anchorlm.evaluation.reports._tables": "latex markdown summary write_costs write_tables",
            "anchorlm.evaluation.tasks._tasks": "WORDINGS answer_line",
        },
    )

__all__ = [
    "WORDINGS",
    "Agreement",
    "Attack",
    "Case",
    "CompareRecipe",
    "Crew",
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
    "Share",
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
