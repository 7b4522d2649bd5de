"""Names that moved work for one more release, and say where they are now."""

from __future__ import annotations

from importlib import import_module

import pytest

MOVED = [
    *(
        ("anchorlm.records", name, "anchorlm.files", name)
        for name in ("Journal", "read_rows", "read_toml", "table_rows")
    ),
    ("anchorlm.defenses", "speak", "anchorlm.defenses", "stream_target"),
    ("anchorlm.records", "Row", "anchorlm.files", "PromptRow"),
    ("anchorlm.search", "Alone", "anchorlm.search", "TargetProposal"),
    ("anchorlm.serving", "Served", "anchorlm.serving", "ServedModel"),
    ("anchorlm.fitting", "fit_inferaligner", "anchorlm.defenses.inferaligner", "fit_inferaligner"),
    ("anchorlm.mixing", "Guide", "anchorlm.defenses.alignbeam", "Guide"),
    ("anchorlm.steering", "Aligner", "anchorlm.defenses.inferaligner", "Aligner"),
]


@pytest.mark.parametrize(("package", "old", "home", "new"), MOVED)
def test_a_name_that_moved_is_the_new_one_and_says_so(package: str, old: str, home: str, new: str) -> None:
    module = import_module(package)
    with pytest.warns(DeprecationWarning, match=rf"{package}.{old} is {home}.{new} now"):
        assert getattr(module, old) is getattr(import_module(home), new)
