from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.guidance import contrast

laws = st.lists(st.floats(1e-3, 1), min_size=5, max_size=5).map(lambda found: torch.tensor(found) / sum(found))


@settings(deadline=None)
@given(laws, laws, st.floats(0, 8))
def test_an_anchor_that_alignment_did_not_change_changes_nothing(p: torch.Tensor, q: torch.Tensor, w: float) -> None:
    assert torch.allclose(contrast(p, q, q, w, plausible=0.0), p, atol=1e-5)


@settings(deadline=None)
@given(laws, laws, laws, st.floats(0, 4))
def test_the_contrast_is_proxy_tuning_written_literally(
    p: torch.Tensor, q: torch.Tensor, base: torch.Tensor, w: float
) -> None:
    literal = p * (q / base) ** w
    assert torch.allclose(contrast(p, q, base, w, plausible=0.0, least=0.0), literal / literal.sum(), atol=1e-4)
    assert torch.equal(contrast(p, q, base, 0.0), p)


def test_only_what_the_target_finds_plausible_gets_mass_and_what_no_anchor_says_stays_finite() -> None:
    p, q, base = (torch.tensor(one) for one in ([0.9, 0.0999, 1e-4], [0.0, 0.1, 0.9], [0.0, 0.9, 0.1]))
    found = contrast(p, q, base, 4.0, plausible=1e-2)
    assert found[2] == 0
    assert found.isfinite().all()
    assert torch.isclose(found.sum(), torch.tensor(1.0))
    assert found[0] > found[1]
