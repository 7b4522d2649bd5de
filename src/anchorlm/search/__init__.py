"""Candidates, blocks and beams, and the choice among them under a score."""

from typing import TYPE_CHECKING

from anchorlm._lazy import lazily

if TYPE_CHECKING:
    from anchorlm.search._beams import Beam, Found, Score, SearchPlan, search, seed_at, unscored, write
    from anchorlm.search._candidates import Candidate, Choice, blank, release, select_safest, ungraded
    from anchorlm.search._proposals import Diversity, Proposal, TargetProposal, scored, take
    from anchorlm.search._state import SafetyState, spend
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "_beams": "Beam Found SearchPlan Score search seed_at unscored write",
            "_candidates": "Candidate Choice blank release select_safest ungraded",
            "_proposals": "TargetProposal Diversity Proposal scored take",
            "_state": "SafetyState spend",
        },
        moved={
            "anchorlm.defenses.inferenceguard": "Critic",
            "anchorlm.search": "Alone=TargetProposal Plan=SearchPlan select=select_safest",
        },
    )

__all__ = [
    "Beam",
    "Candidate",
    "Choice",
    "Diversity",
    "Found",
    "Proposal",
    "SafetyState",
    "Score",
    "SearchPlan",
    "TargetProposal",
    "blank",
    "release",
    "scored",
    "search",
    "seed_at",
    "select_safest",
    "spend",
    "take",
    "ungraded",
    "unscored",
    "write",
]
