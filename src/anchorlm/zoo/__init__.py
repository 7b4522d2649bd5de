"""The embedded models: tiny, trained from scratch, and able to show what the defenses are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anchorlm.zoo._grading import Outcome, grade, harm, is_correct
from anchorlm.zoo._items import SPLITS, Item, items
from anchorlm.zoo._lexicon import DOMAINS, PARTITIONS
from anchorlm.zoo._members import Member, artifact, members, path
from anchorlm.zoo._real import RealMember, real_members
from anchorlm.zoo._transcripts import JUDGE_TEMPLATE, transcript

if TYPE_CHECKING:
    from anchorlm.zoo._build import build

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
    "build",
    "grade",
    "harm",
    "is_correct",
    "items",
    "members",
    "path",
    "real_members",
    "transcript",
]


def __getattr__(name: str) -> object:
    # Building needs torch and peft; prompts and grading do not, so they are not made to wait for it.
    if name == "build":
        from anchorlm.zoo._build import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
