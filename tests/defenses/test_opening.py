from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.defenses.alignbeam import Opening

shares = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda found: sum(found) > 0.1)


def law(values: list[float]) -> torch.Tensor:
    found = torch.tensor(values)
    return found / found.sum()


def test_the_score_is_the_log_odds_of_the_mean_share_of_harm() -> None:
    harmful, harmless = law([8, 1, 1, 0]), law([0, 4, 5, 1])
    opening, first = Opening.fit(harmful, harmless, 10), law([1, 2, 3, 4])
    told = (harmful + 0.1) / (harmful + harmless + 0.2)
    mean = float((told * first).sum())
    assert opening.score(first) == pytest.approx(math.log(mean / (1 - mean)), abs=1e-4)
    assert opening.score(law([1, 0, 0, 0])) > 0 > opening.score(law([0, 0, 1, 0]))


@settings(deadline=None)
@given(shares, shares, shares, st.integers(1, 1000))
def test_classes_that_open_alike_tell_nothing_and_swapped_ones_the_opposite(
    harmful: list[float], harmless: list[float], first: list[float], prompts: int
) -> None:
    same = Opening.fit(law(harmful), law(harmful), prompts)
    assert len(same.tokens) == 0
    assert same.score(law(first)) == 0.0
    one, other = (Opening.fit(law(bad), law(good), prompts) for bad, good in ((harmful, harmless), (harmless, harmful)))
    assert one.score(law(first)) == pytest.approx(-other.score(law(first)), abs=1e-3)


@settings(deadline=None)
@given(shares, shares)
def test_a_token_that_only_one_prompt_of_many_opened_with_is_not_trusted(
    first: list[float], law_of: list[float]
) -> None:
    seen = law([*law_of, 0])
    rare = 0.999 * seen + 0.001 * torch.tensor([0, 0, 0, 0, 1.0])  # one of a thousand prompts, on one side only
    opening = Opening.fit(rare, seen, 1000)
    share = dict(zip(opening.tokens.tolist(), opening.shares.tolist(), strict=True)).get(4, 0.5)
    assert share <= 2 / 3 + 1e-4


def test_tensors_of_an_artifact_read_alike() -> None:
    opening = Opening.fit(law([8, 1, 1, 0]), law([0, 4, 5, 1]), 10)
    again, first = Opening.of(opening.tensors), law([1, 2, 3, 4])
    assert again.score(first) == opening.score(first)
    assert math.isnan(opening.score(torch.full((4,), float("nan"))))
