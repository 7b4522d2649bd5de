"""Judging: anything that scores a text for harm under one contract, and for cost or reward under another."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.judging._base import Grade, Judge
    from anchorlm.judging._callable import CallableJudge, CallableScorer, Score
    from anchorlm.judging._classifier import ClassifierJudge
    from anchorlm.judging._conversation import request_text
    from anchorlm.judging._english import Verdict, gives_harm, refuses
    from anchorlm.judging._grades import parse_grade
    from anchorlm.judging._names import ENGLISH, HARM
    from anchorlm.judging._openings import OPENINGS, gives_the_same, opens_refusing
    from anchorlm.judging._refusal import Refusal, RefusalMatcher
    from anchorlm.judging._remote import RemoteScorer
    from anchorlm.judging._rubric import RUBRIC, RubricJudge
    from anchorlm.judging._rubric_scorer import HELP, RubricScorer
    from anchorlm.judging._score_models import SAFE_RLHF_TEMPLATE, ClassifierScorer
    from anchorlm.judging._scores import JudgeScorer, Scorer, checked_scores
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_base": "Grade Judge",
            "_callable": "CallableJudge CallableScorer Score",
            "_classifier": "ClassifierJudge",
            "_conversation": "request_text",
            "_english": "Verdict gives_harm refuses",
            "_grades": "parse_grade",
            "_names": "ENGLISH HARM",
            "_openings": "OPENINGS gives_the_same opens_refusing",
            "_refusal": "Refusal RefusalMatcher",
            "_remote": "RemoteScorer",
            "_rubric": "RUBRIC RubricJudge",
            "_rubric_scorer": "HELP RubricScorer",
            "_score_models": "SAFE_RLHF_TEMPLATE ClassifierScorer",
            "_scores": "JudgeScorer Scorer checked_scores",
        },
    )

__all__ = [
    "ENGLISH",
    "HARM",
    "HELP",
    "OPENINGS",
    "RUBRIC",
    "SAFE_RLHF_TEMPLATE",
    "CallableJudge",
    "CallableScorer",
    "ClassifierJudge",
    "ClassifierScorer",
    "Grade",
    "Judge",
    "JudgeScorer",
    "Refusal",
    "RefusalMatcher",
    "RemoteScorer",
    "RubricJudge",
    "RubricScorer",
    "Score",
    "Scorer",
    "Verdict",
    "checked_scores",
    "gives_harm",
    "gives_the_same",
    "opens_refusing",
    "parse_grade",
    "refuses",
    "request_text",
]
