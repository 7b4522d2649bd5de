from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from factories import tiny_model
from fitting.conftest import HARMFUL, HARMLESS

from anchorlm import Guard
from anchorlm.defenses.inferaligner import fit_inferaligner, save_artifact, tradeoff_svg
from anchorlm.engine import LocalEngine
from anchorlm.files import check_folder
from anchorlm.records import Artifact, UserError
from anchorlm.steering import rate


def test_paths_models_and_engines_fit_alike(
    fitted: Artifact, target: LocalEngine, anchor: LocalEngine, tmp_path: Path
) -> None:
    for name, engine in (("target", target), ("anchor", anchor)):
        engine.model.model.save_pretrained(tmp_path / name)
        engine.model.tokenizer.save_pretrained(tmp_path / name)
    assert fit_inferaligner(tmp_path / "target", str(tmp_path / "anchor"), HARMFUL, HARMLESS).id == fitted.id
    assert fit_inferaligner(target.model, anchor.model, HARMFUL, HARMLESS).id == fitted.id


def test_conversations_fit_as_their_texts_do(fitted: Artifact, target: LocalEngine, anchor: LocalEngine) -> None:
    talks: list[list[list[dict[str, str]]]] = [
        [[{"role": "user", "content": text}] for text in texts] for texts in (HARMFUL, HARMLESS)
    ]
    found = fit_inferaligner(target, anchor, *talks)
    assert found.figures["gate"][0].keys() == fitted.figures["gate"][0].keys()
    assert found.data["harmful"]["digest"] != fitted.data["harmful"]["digest"]  # a text is not a conversation


def test_the_fitted_artifact_guards(fitted: Artifact, target: LocalEngine, tmp_path: Path) -> None:
    folder = save_artifact(fitted, tmp_path / "new" / "artifact")
    guard = Guard(target, "inferaligner", artifact=str(folder), generation={"max_new_tokens": 3})
    assert guard.chat([{"role": "user", "content": HARMFUL[0]}]).trace[0].kind == "gate"
    card = (folder / "README.md").read_text()
    assert "Not calibrated yet" in card
    assert not (folder / "tradeoff.svg").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"across": "sometimes"}, "across = 'sometimes' does not exist: choose auto, always or never"),
        ({"whitening": "zca"}, "whitening = 'zca' does not exist"),
        ({"harmful": HARMFUL[:7]}, "only 7 distinct harmful prompts: give at least 8"),
        ({"holdout": 0.0}, "holdout"),
    ],
)
def test_bad_input_is_one_sentence(target: LocalEngine, anchor: LocalEngine, change: dict[str, Any], says: str) -> None:
    arguments = {"harmful": HARMFUL, "harmless": HARMLESS, **change}
    with pytest.raises(UserError, match=says):
        fit_inferaligner(target, anchor, **arguments)


def test_an_anchor_of_another_width_crosses_only_by_a_map(target: LocalEngine) -> None:
    wide = tiny_model("llama", hidden_size=96)
    with pytest.raises(UserError, match="leave across at auto"):
        fit_inferaligner(target, wide, HARMFUL, HARMLESS, across="never")
    found = fit_inferaligner(target, wide, HARMFUL, HARMLESS)
    assert found.tensors["shift.unit"].shape == (2, 64)


def test_a_folder_of_something_else_is_left_alone(fitted: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    readme = tmp_path / "model" / "README.md"
    readme.write_text("my model")
    (tmp_path / "file").write_text("a file")
    for place in ("model", "file", "file/inside"):
        with pytest.raises(UserError, match="choose another folder"):
            save_artifact(fitted, tmp_path / place)
    assert readme.read_text() == "my model"
    assert check_folder(tmp_path / "new" / "deeper", "inferaligner") == tmp_path / "new" / "deeper"
    assert not (tmp_path / "new").exists()


CURVE = [(0.0, 0.0, 0.1, 0.2), (0.0, 0.9, 0.8, 0.25), (0.04, 0.95, 0.85, 0.3), (1.0, 1.0, 0.9, 0.3)]


def calibration(limit: float = 0.01) -> dict[str, Any]:
    rows = [
        {"harmless opened": {"rate": x}, "harmful opened": {"rate": a}, "refused": {"rate": b}, "broken": {"rate": c}}
        for x, a, b, c in CURVE
    ]
    return {
        "limit": limit,
        "curve": rows,
        "gate": {"harmless opened": rate(1, 200), "harmful opened": rate(90, 96)},
        "guarded": {"refused": rate(40, 48)},
        "undefended": {"refused": rate(3, 48)},
    }


def test_the_picture_shows_every_point_within_its_frame() -> None:
    root = ElementTree.fromstring(tradeoff_svg(calibration()))
    space = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    lines = root.findall(f"{space}polyline")
    assert len(lines) == 3
    for line, column in zip(lines, (1, 2, 3), strict=True):
        points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert len(points) == len(CURVE)
        assert all(0 < x < width and 0 < y < height for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        heights = [row[column] for row in CURVE]
        assert [-y for _, y in points] == sorted(-y for _, y in points)
        assert (points[0][1] - points[-1][1]) / (heights[-1] - heights[0]) == pytest.approx(288, abs=1)
    words = " ".join(root.itertext())
    for said in (
        "limit 1%",
        "harmless prompts on which the gate opens",
        "refused cleanly",
        "96 harmful, 200 harmless",
        "48 harmful ones",
    ):
        assert said in words


def test_the_picture_has_no_background_of_its_own() -> None:
    picture = tradeoff_svg(calibration(0.0))
    assert "<rect" not in picture
    for color in ("#fff", "white", "#000", "black"):
        assert color not in picture
