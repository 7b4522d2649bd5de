from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from anchorlm import Guard
from anchorlm.models import BASES, CausalModel
from anchorlm.models import _bases as bases
from anchorlm.zoo import RealMember, path, real_members
from tools.zoo_real.bases import BUILD

Invoke = Callable[..., Result]
SHIPPED = [one for one in real_members() if one.role != "base"]
LANGUAGE_MODELS = [one for one in SHIPPED if one.role in ("chat", "anchor", "specialist")]


def test_without_the_bases_the_list_says_what_to_install(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "find_spec", lambda package: None)
    result = invoke("zoo", "list")
    assert result.exit_code == 0
    for base in BASES.values():
        assert base.install in result.stdout.splitlines()
    assert "make real" in result.stdout
    rows = {row["name"]: row for row in json.loads(invoke("zoo", "list", "--json").stdout)}
    assert {one.name for one in real_members()} <= rows.keys()
    for one in real_members():
        assert rows[one.name]["remedy"] == one.base.install
        assert not rows[one.name]["ready"]
    assert "a-finance" in rows


def test_a_real_model_without_its_base_is_one_sentence(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "find_spec", lambda package: None)
    result = invoke("zoo", "path", "real-gemma")
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(BASES["real-gemma"].install)


def test_the_real_members_together_fit_into_30_megabytes() -> None:
    assert sum(one.size for one in SHIPPED) <= 30 * 10**6


@pytest.mark.parametrize("one", SHIPPED, ids=lambda one: one.name)
def test_a_real_member_names_its_base_and_licences(one: RealMember) -> None:
    if not one.size:
        pytest.skip(f"{one.name} is not shipped yet: make zoo-real")
    settings = json.loads((one.path / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == one.base.file
    card = (one.path / "README.md").read_text("utf-8")
    assert "Learned from" in card
    assert "Measured" in card
    assert one.base.title != "Gemma 3 270M" or "Gemma Terms of Use" in card


@pytest.mark.slow
@pytest.mark.parametrize("one", LANGUAGE_MODELS, ids=lambda one: one.name)
def test_a_real_member_is_called_by_its_name(one: RealMember) -> None:
    if not one.ready:
        pytest.skip(f"{one.name} cannot be loaded here: {one.remedy}")
    assert path(one.name) == one.path
    named = Guard(one.name, "undefended", generation={"max_new_tokens": 8})
    placed = CausalModel.from_pretrained(one.path)
    said = named.chat("Why does bread rise in the oven?")
    assert Guard(placed, "undefended", generation={"max_new_tokens": 8}).chat(
        "Why does bread rise in the oven?"
    ).token_ids == said.token_ids  # fmt: skip
    assert said.text.strip()


@pytest.mark.parametrize("one", SHIPPED, ids=lambda one: one.name)
def test_a_shipped_member_has_the_weights_that_were_made(one: RealMember) -> None:
    made = BUILD / one.name.removeprefix("real-") / "adapter_model.safetensors"
    if not (one.size and made.is_file()):
        pytest.skip(f"there is no {made}: make zoo-real")
    first, second = load_file(made), load_file(one.path / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].half(), second[name].half()) for name in first)
