from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

with suppress(ModuleNotFoundError):  # what is tested on Ray needs none of it
    from hypothesis import HealthCheck, settings

    # By default an example that takes more than 0.2 seconds fails its test, and a busy machine is enough for that.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

STARTS = {"start", "start_live", "_installed"}
"""Fixtures that start a process or a server. A test that asks for one of them, directly or not, is slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if STARTS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers, models and data sets that the project does not ship."""
    folder = Path(os.environ.get("ANCHORLM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}: set ANCHORLM_DATA to a folder with tokenizers/, models/, datasets/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ANCHORLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
