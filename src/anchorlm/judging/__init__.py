"""Judging: anything that scores a text for harm under one contract, and for cost or reward under another."""

from anchorlm.judging._base import Grade, Judge
from anchorlm.judging._callable import CallableJudge, CallableScorer, Score
from anchorlm.judging._classifier import ClassifierJudge
from anchorlm.judging._conversation import request_text
from anchorlm.judging._english import ENGLISH, HARM, Verdict, gives_harm, refuses
from anchorlm.judging._grades import parse_grade
from anchorlm.judging._openings import OPENINGS, gives_the_same, opens_refusing
from anchorlm.judging._refusal import Refusal, RefusalMatcher
from anchorlm.judging._remote import RemoteScorer
from anchorlm.judging._rubric import RUBRIC, RubricJudge
from anchorlm.judging._score_models import SAFE_RLHF_TEMPLATE, ClassifierScorer
from anchorlm.judging._scores import JudgeScorer, Scorer, checked_scores

__all__ = [
    "ENGLISH",
    "HARM",
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
