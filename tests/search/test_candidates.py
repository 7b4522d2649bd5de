"""The choice among judged candidates, against a naive oracle."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from hypothesis import assume, given
from hypothesis import strategies as st

from anchorlm.judging import Grade
from anchorlm.records import Decision, Finished, TextDelta
from anchorlm.search import Candidate, Choice, blank, release, select_safest

HARMS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.375, 0.38, 0.7, 1.0])
LIKELY = st.one_of(st.just(-inf), st.floats(-50, 0))
FIELDS = st.lists(st.tuples(HARMS, LIKELY, st.booleans()), min_size=1, max_size=6)
UNIT = st.sampled_from([0.0, 0.1, 0.175, 0.2, 0.375, 0.5, 1.0])


def of(fields: Sequence[tuple[float, float | None, bool]]) -> tuple[list[Candidate], list[Grade]]:
    candidates = [
        Candidate("" if nothing else f"text {index}", (index,), "stop", likely, blank=nothing)
        for index, (_, likely, nothing) in enumerate(fields)
    ]
    return candidates, [Grade(harm, "said so") for harm, _, _ in fields]


def oracle(fields: list[tuple[float, float, bool]], max_harm: float, comfort: float) -> int | None:
    """Literally: strike out what may not be given, look for the likeliest at ease, else for the least harmful."""
    best: int | None = None
    for wanted_ease in (True, False):
        for index, (harm, likely, nothing) in enumerate(fields):
            at_ease = harm <= max_harm - comfort
            if nothing or harm > max_harm or (wanted_ease and not at_ease):
                continue
            if best is None:
                best = index
                continue
            other_harm, other_likely, _ = fields[best]
            if wanted_ease:
                better = likely > other_likely
            else:
                better = harm < other_harm or (harm == other_harm and likely > other_likely)
            best = index if better else best
        if best is not None:
            return best
    return None


@given(FIELDS, UNIT, UNIT)
def test_the_choice_is_the_oracles(fields: list[tuple[float, float, bool]], max_harm: float, comfort: float) -> None:
    choice = select_safest(*of(fields), max_harm, comfort)
    assert (None if choice is None else choice.index) == oracle(fields, max_harm, comfort)


@given(FIELDS, UNIT, UNIT)
def test_nothing_that_is_blank_or_too_harmful_is_chosen(
    fields: list[tuple[float, float, bool]], max_harm: float, comfort: float
) -> None:
    choice = select_safest(*of(fields), max_harm, comfort)
    may = [index for index, (harm, _, nothing) in enumerate(fields) if harm <= max_harm and not nothing]
    assert (choice is None) == (not may)
    assert choice is None or choice.index in may


@given(FIELDS, UNIT)
def test_full_comfort_is_the_paper_whatever_the_likelihoods(
    fields: list[tuple[float, float, bool]], max_harm: float
) -> None:
    assume(max_harm < 1)
    choice = select_safest(*of(fields), max_harm, 1.0)
    least = min((harm for harm, _, nothing in fields if not nothing and harm <= max_harm), default=None)
    assert (None if choice is None else fields[choice.index][0]) == least


@given(FIELDS, UNIT, UNIT, st.permutations(range(6)))
def test_the_choice_does_not_depend_on_the_order_of_unequal_candidates(
    fields: list[tuple[float, float, bool]], max_harm: float, comfort: float, order: list[int]
) -> None:
    assume(len({likely for _, likely, _ in fields}) == len(fields))
    order = [index for index in order if index < len(fields)]
    one = select_safest(*of(fields), max_harm, comfort)
    other = select_safest(*of([fields[index] for index in order]), max_harm, comfort)
    assert (None if one is None else one.index) == (None if other is None else order[other.index])


def test_without_likelihoods_the_first_at_ease_wins() -> None:
    candidates, grades = of([(0.3, None, False), (0.1, None, False), (0.0, None, False)])
    assert select_safest(candidates, grades, 0.375, 0.2) == Choice(1, "the first of 2 with harm of at most 0.175")
    assert select_safest(candidates, grades, 0.375, 1.0) == Choice(2, "the safest")
    assert select_safest(candidates, grades, 0.375, 0.0) == Choice(0, "the first of 3 with harm of at most 0.375")


def test_only_blank_candidates_lead_to_the_refusal_that_says_so() -> None:
    candidates, grades = of([(0.0, -1.0, True), (0.0, -2.0, True)])
    events = list(release(select_safest(candidates, grades, 1.0), candidates, grades, "No.", prompt_tokens=3))
    assert [event.data["why"] for event in events if isinstance(event, Decision) and event.kind == "fallback"] == [
        "no candidate says anything"
    ]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["No."]
    assert [event.reason for event in events if isinstance(event, Finished)] == ["refusal"]


def test_a_text_is_blank_where_no_character_of_it_can_be_seen() -> None:
    assert all(map(blank, ["", " ", "\n\t", "\u200b", "\ufeff \u00a0"]))
    assert not any(map(blank, [".", " a", "\u200bb", "\ufffd", "禁"]))
