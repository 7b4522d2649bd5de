from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import sleep

import pytest

pytest.importorskip("ray.data", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

import ray  # noqa: E402

from anchorlm.ray._pool import shared  # noqa: E402
from anchorlm.ray._start import started  # noqa: E402
from anchorlm.records import ModelError, UserError  # noqa: E402


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


def test_a_cluster_that_is_in_use_is_told_and_not_waited_for() -> None:
    class Other:
        def there(self) -> bool:
            return True

    ray.init(num_cpus=2, include_dashboard=False)
    try:
        one, two = (ray.remote(num_cpus=1)(Other).remote() for _ in range(2))
        assert ray.get([one.there.remote(), two.there.remote()]) == [True, True]
        with pytest.raises(UserError, match="0 free processors.*end what else runs there"), started(None):
            pass
        ray.kill(two)
        while ray.available_resources().get("CPU", 0) < 1:
            sleep(0.1)
        with started(None) as crew:
            assert (crew.size, crew.cpus) == (1, 1)
    finally:
        ray.shutdown()
