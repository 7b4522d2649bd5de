from __future__ import annotations

import pytest

from anchorlm.ray._start import Crew, fitting
from anchorlm.records import UserError

CPUS, GPUS, TAKEN = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 0.0}


@pytest.mark.parametrize(
    ("machines", "workers", "crew"),
    [
        ([CPUS], None, Crew(1, 8, 0)),
        ([CPUS], 2, Crew(2, 4, 0)),
        ([CPUS], 3, Crew(3, 2, 0)),
        ([CPUS, CPUS], None, Crew(2, 8, 0)),
        ([CPUS, CPUS], 3, Crew(3, 4, 0)),  # and not 5, which would leave the third one without a machine
        ([CPUS, {"memory": 1.0}], None, Crew(1, 8, 0)),
        ([CPUS, GPUS], None, Crew(2, 4, 1)),
        ([GPUS, GPUS], 3, Crew(3, 4, 1)),
        ([{"CPU": 8.0, "GPU": 1.5}], None, Crew(1, 8, 1)),
    ],
)
def test_workers_share_what_the_machines_have(
    machines: list[dict[str, float]], workers: int | None, crew: Crew
) -> None:
    assert fitting(machines, workers) == crew


@pytest.mark.parametrize(("machines", "workers"), [([CPUS], 9), ([GPUS], 3), ([], None), ([TAKEN], None)])
def test_a_cluster_that_is_too_small_is_told_in_one_sentence(
    machines: list[dict[str, float]], workers: int | None
) -> None:
    with pytest.raises(UserError, match="--workers"):
        fitting(machines, workers)


def test_what_is_in_use_is_told() -> None:
    with pytest.raises(UserError, match="0 free GPUs.* end what else runs there"):
        fitting([TAKEN], 1, busy=True)
    with pytest.raises(UserError, match="0 free processors.* end what else runs there"):
        fitting([{"CPU": 0.0}], 1, busy=True)


def test_one_is_told_as_one() -> None:
    with pytest.raises(UserError, match="has 1 free processor for workers, "):
        fitting([{"CPU": 1.0}], 2, busy=True)
    with pytest.raises(UserError, match="has 1 GPU, and each worker takes one"):
        fitting([{"CPU": 8.0, "GPU": 1.0}], 2)
    with pytest.raises(UserError, match="has 8 processors for workers, "):
        fitting([CPUS], 9)
