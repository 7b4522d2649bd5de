"""Judging: anything that scores a text for harm under one contract, and for cost or reward under another."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.judging._auroc import auroc
    from anchorlm.judging._base import Follow, Grade, Judge
    from anchorlm.judging._callable import CallableJudge, CallableScorer, Score
    from anchorlm.judging._cascade import CascadeJudge
    from anchorlm.judging._classifier import ClassifierJudge
    from anchorlm.judging._conversation import request_text
    from anchorlm.judging._english import Verdict, gives_harm, refuses
    from anchorlm.judging._grades import parse_grade
    from anchorlm.judging._guard import GuardJudge
    from anchorlm.judging._guard_formats import GuardFormat, guard_formats
    from anchorlm.judging._guard_scorer import GuardScorer
    from anchorlm.judging._names import ENGLISH, HARM, THEN
    from anchorlm.judging._openings import OPENINGS, gives_the_same, opens_refusing
    from anchorlm.judging._outcomes import Answer, FluencyGrading, Grader, Grading, Outcome, graded_by, instrument
    from anchorlm.judging._refusal import Refusal, RefusalMatcher
    from anchorlm.judging._remote import RemoteScorer
    from anchorlm.judging._rubric import RUBRIC, RubricJudge
    from anchorlm.judging._rubric_scorer import HELP, RubricScorer
    from anchorlm.judging._score_models import SAFE_RLHF_TEMPLATE, ClassifierScorer
    from anchorlm.judging._scores import JudgeScorer, Scorer, checked_scores
    from anchorlm.judging._thoughts import marked, without_thoughts
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_base": "Follow Grade Judge",
            "_callable": "CallableJudge CallableScorer Score",
            "_cascade": "CascadeJudge",
            "_classifier": "ClassifierJudge",
            "_conversation": "request_text",
            "_english": "Verdict gives_harm refuses",
            "_grades": "parse_grade",
            "_guard": "GuardJudge",
            "_guard_scorer": "GuardScorer",
            "_guard_formats": "GuardFormat guard_formats",
            "_names": "ENGLISH HARM THEN",
            "_openings": "OPENINGS gives_the_same opens_refusing",
            "_refusal": "Refusal RefusalMatcher",
            "_remote": "RemoteScorer",
            "_rubric": "RUBRIC RubricJudge",
            "_rubric_scorer": "HELP RubricScorer",
            "_score_models": "SAFE_RLHF_TEMPLATE ClassifierScorer",
            "_scores": "JudgeScorer Scorer checked_scores",
            "_auroc": "auroc",
            "_outcomes": "Answer FluencyGrading Grader Grading Outcome graded_by instrument",
            "_thoughts": "marked without_thoughts",
        },
    )

__all__ = [
    "ENGLISH",
    "HARM",
    "HELP",
    "OPENINGS",
    "RUBRIC",
    "SAFE_RLHF_TEMPLATE",
    "THEN",
    "Answer",
    "CallableJudge",
    "CallableScorer",
    "CascadeJudge",
    "ClassifierJudge",
    "ClassifierScorer",
    "FluencyGrading",
    "Follow",
    "Grade",
    "Grader",
    "Grading",
    "GuardFormat",
    "GuardJudge",
    "GuardScorer",
    "Judge",
    "JudgeScorer",
    "Outcome",
    "Refusal",
    "RefusalMatcher",
    "RemoteScorer",
    "RubricJudge",
    "RubricScorer",
    "Score",
    "Scorer",
    "Verdict",
    "auroc",
    "checked_scores",
    "gives_harm",
    "gives_the_same",
    "graded_by",
    "guard_formats",
    "instrument",
    "marked",
    "opens_refusing",
    "parse_grade",
    "refuses",
    "request_text",
    "without_thoughts",
]
