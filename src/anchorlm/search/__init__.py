"""Candidates, blocks and beams, and the choice among them under a score."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.search._beams import Beam, Found, Plan, Score, search, unscored
    from anchorlm.search._candidates import Candidate, Choice, blank, release, select, ungraded
    from anchorlm.search._critic import Critic
    from anchorlm.search._proposals import Alone, Diversity, Proposal, draw, scored, stepwise
    from anchorlm.search._state import SafetyState, spend
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_beams": "Beam Found Plan Score search unscored",
            "_candidates": "Candidate Choice blank release select ungraded",
            "_critic": "Critic",
            "_proposals": "Alone Diversity Proposal draw scored stepwise",
            "_state": "SafetyState spend",
        },
    )

__all__ = [
    "Alone",
    "Beam",
    "Candidate",
    "Choice",
    "Critic",
    "Diversity",
    "Found",
    "Plan",
    "Proposal",
    "SafetyState",
    "Score",
    "blank",
    "draw",
    "release",
    "scored",
    "search",
    "select",
    "spend",
    "stepwise",
    "ungraded",
    "unscored",
]
