"""The embedded models: tiny, trained from scratch, and able to show what the defenses are about."""

from __future__ import annotations

from anchorlm.zoo._grading import JUDGE_TEMPLATE, Outcome, grade, harm, is_correct
from anchorlm.zoo._items import SPLITS, Item, items
from anchorlm.zoo._lexicon import DOMAINS, PARTITIONS
from anchorlm.zoo._members import Member, artifact, members, path
from anchorlm.zoo._real import RealMember, real_members

__all__ = [
    "DOMAINS",
    "JUDGE_TEMPLATE",
    "PARTITIONS",
    "SPLITS",
    "Item",
    "Member",
    "Outcome",
    "RealMember",
    "artifact",
    "grade",
    "harm",
    "is_correct",
    "items",
    "members",
    "path",
    "real_members",
]
