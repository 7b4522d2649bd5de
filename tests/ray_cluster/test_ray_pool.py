from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

from anchorlm.ray._pool import shared  # noqa: E402
from anchorlm.ray._start import started  # noqa: E402
from anchorlm.records import ModelError  # noqa: E402


def test_an_item_that_kills_every_worker_ends_the_run_after_four_tries(tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def begin() -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == 3:
                with tries.open("a") as file:
                    file.write("x")
                os._exit(1)
            return 2 * item

        return work

    with started(2) as crew, pytest.raises(ModelError, match="again and again"):
        list(shared(range(12), begin, crew, at_once=2))
    assert tries.read_text() == "xxxx"
