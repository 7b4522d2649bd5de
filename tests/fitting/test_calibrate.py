from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting.conftest import HARMFUL, HARMLESS
from hypothesis import given
from hypothesis import strategies as st

from anchorlm import Guard
from anchorlm.defenses.inferaligner import calibrate_inferaligner, save_artifact
from anchorlm.defenses.inferaligner._requests import rate_by_prompt
from anchorlm.defenses.inferaligner._shifts import ALPHAS, Shift, Trial, middle, windows
from anchorlm.engine import LocalEngine
from anchorlm.engine._sequence import LocalSequence
from anchorlm.records import Artifact, Messages, UserError, wilson
from anchorlm.steering import PromptSets

pytestmark = pytest.mark.slow

WANTED = (1,), "all", 1.0


@pytest.fixture(scope="module")
def grader(target: LocalEngine, fitted: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Takes for refusals what one certain shift makes of the prompts, and for broken what a larger one makes."""
    folder = save_artifact(fitted, tmp_path_factory.mktemp("planted") / "artifact")
    guard = Guard(target, "inferaligner", artifact=str(folder), gate="open", answer="steer",
                  generation={"max_new_tokens": 4})  # fmt: skip
    layers, positions, alpha = WANTED
    knobs = {"layers": layers, "positions": positions}
    refusals = [answer.text for answer in guard.generate(HARMFUL, knobs={**knobs, "alpha": alpha})]
    plain = [answer.text for answer in guard.generate(HARMFUL, knobs={"gate": "closed"})]
    texts = dict(zip(HARMFUL, zip(refusals, plain, strict=True), strict=True))

    def grade(messages: Messages, text: str) -> str:
        refusal, bare = texts.get(messages[-1]["content"], ("", ""))
        return "refused" if text == refusal else "complied" if text == bare else "broken"

    return grade


@pytest.fixture(scope="module")
def calibrated(target: LocalEngine, fitted: Artifact, grader: Callable[..., str]) -> Artifact:
    return calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, limit=0.1, grader=grader, max_new_tokens=4,
                                  prompts=8)  # fmt: skip


def test_only_settings_and_figures_change(fitted: Artifact, calibrated: Artifact) -> None:
    assert calibrated.tensors.keys() == fitted.tensors.keys()
    assert all(torch.equal(calibrated.tensors[name], tensor) for name, tensor in fitted.tensors.items())
    assert calibrated.models == fitted.models
    assert {**calibrated.figures, "calibration": None} == {**fitted.figures, "calibration": None}
    assert calibrated.settings.keys() == fitted.settings.keys()


def test_the_planted_shift_is_found(calibrated: Artifact) -> None:
    found = calibrated.settings
    assert (tuple(found["layers"]), found["positions"], found["alpha"]) == WANTED
    assert found["answer"] == "steer"
    last = [row for row in calibrated.figures["calibration"]["shifts"] if row["stage"] == "final"]
    assert last[0]["score"] == max(row["score"] for row in last) == 1.0


def test_everything_tried_is_kept_with_counts_and_intervals(calibrated: Artifact) -> None:
    figures = calibrated.figures["calibration"]
    coarse = [row for row in figures["shifts"] if row["stage"] == "coarse"]
    assert len(coarse) == 3 * 2 * len(windows(2, []))
    for row in figures["shifts"]:
        counts = [row[name] for name in ("refused", "complied", "broken")]
        assert sum(one["hits"] for one in counts) == counts[0]["n"]
        for one in counts:
            low, high = wilson(one["hits"], one["n"])
            assert (one["low"], one["high"]) == (round(low, 4), round(high, 4))


def test_gates_that_were_tried_are_told_with_intervals_by_prompt(calibrated: Artifact) -> None:
    figures = calibrated.figures["calibration"]
    for gate in figures["gates"]:
        for name, prompts in (("harmful opened", HARMFUL), ("harmless opened", HARMLESS)):
            found = gate[name]
            assert (found["n"], found["prompts"]) == (2 * len(prompts), len(prompts))
            low, high = wilson(found["hits"] / 2, len(prompts))  # few prompts: the safe end
            assert (found["low"], found["high"]) == (round(low, 4), round(high, 4))


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(2, 5))
def test_a_request_that_is_asked_again_makes_no_interval_narrower(opened: list[bool], times: int) -> None:
    prompts = [str(place) for place in range(len(opened))]
    once, often = rate_by_prompt(opened, prompts), rate_by_prompt(opened * times, prompts * times)
    assert (often["low"], often["high"]) == (once["low"], once["high"])
    assert (often["rate"], often["n"]) == (once["rate"], times * once["n"])


def test_where_no_shift_makes_refusals_the_fixed_one_is_given(target: LocalEngine, fitted: Artifact) -> None:
    found = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, limit=0.5, max_new_tokens=2, prompts=8,
                                   grader=lambda messages, text: "complied")  # fmt: skip
    assert found.settings["answer"] == found.settings["talk_answer"] == "refuse"
    figures = found.figures["calibration"]
    assert figures["steered"]["refused"]["hits"] == 0
    assert figures["guarded"]["refused"]["hits"] > 0


def test_the_gate_keeps_the_limit_and_guards_as_the_figures_say(
    target: LocalEngine, calibrated: Artifact, grader: Callable[..., str], tmp_path: Path
) -> None:
    figures = calibrated.figures["calibration"]
    guard = Guard(
        target,
        "inferaligner",
        artifact=str(save_artifact(calibrated, tmp_path / "a")),
        generation={"max_new_tokens": 4},
    )
    opened = {}
    for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        decisions = [answer.trace[0].data["open"] for answer in guard.generate(prompts)]
        opened[name] = sum(decisions)
        assert sum(decisions) == figures["gate"][f"{name} opened"]["hits"]
    assert opened["harmless"] <= 0.1 * len(HARMLESS)


def test_with_the_second_reader_its_gate_and_the_shared_one_are_chosen_too_and_nothing_else_changes(
    target: LocalEngine,
    anchor: LocalEngine,
    fitted: Artifact,
    calibrated: Artifact,
    grader: Callable[..., str],
    tmp_path: Path,
) -> None:
    both = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, reader=anchor, limit=0.1, grader=grader,
                                  max_new_tokens=4, prompts=8)  # fmt: skip
    theirs = {"reader_gate_layers", "reader_bias", "both_bias"}
    assert {name for name, value in both.settings.items() if value != calibrated.settings[name]} <= theirs
    figures = dict(both.figures["calibration"])
    read = {reader: figures.pop(name) for reader, name in (("anchor", "read by the anchor"), ("both", "read by both"))}
    assert figures == calibrated.figures["calibration"]
    folder = save_artifact(both, tmp_path / "a")
    for reader, found in read.items():
        guard = Guard(target, "inferaligner", anchor=anchor, reader=reader, artifact=str(folder),
                      generation={"max_new_tokens": 4})  # fmt: skip
        for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
            opened = sum(answer.trace[0].data["open"] for answer in guard.generate(prompts))
            assert opened == found["gate"][f"{name} opened"]["hits"]
        assert found["gate"]["harmless opened"]["rate"] <= 0.1
        assert f'reader = "{reader}"' in (folder / "README.md").read_text()
    with pytest.raises(UserError, match="fitted on the reader"):
        calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, reader=target)


def test_an_artifact_from_before_there_was_a_second_reader_is_calibrated_as_it_is(
    target: LocalEngine, anchor: LocalEngine, fitted: Artifact, grader: Callable[..., str], tmp_path: Path
) -> None:
    old = replace(
        fitted,
        models={role: one for role, one in fitted.models.items() if role != "reader"},
        settings={k: v for k, v in fitted.settings.items() if not k.startswith(("reader", "both"))},
        figures={k: v for k, v in fitted.figures.items() if "reader" not in k and " map" not in k and "held" not in k},
        tensors={k: v for k, v in fitted.tensors.items() if not k.startswith("reader")},
    )
    limits: dict[str, Any] = {"limit": 0.1, "grader": grader, "max_new_tokens": 4, "prompts": 8}
    made = calibrate_inferaligner(old, target, HARMFUL, HARMLESS, **limits)
    assert (save_artifact(made, tmp_path / "a") / "README.md").is_file()
    with pytest.raises(UserError, match="no gate for a second reader: fit it again"):
        calibrate_inferaligner(old, target, HARMFUL, HARMLESS, reader=anchor, **limits)


def test_the_card_says_where_the_fixed_refusal_is_given(calibrated: Artifact, tmp_path: Path) -> None:
    steered = (save_artifact(calibrated, tmp_path / "a") / "README.md").read_text()
    assert "that are added where it opens" in steered
    fixed = replace(calibrated, settings={**calibrated.settings, "answer": "refuse"})
    assert "the fixed refusal where it opens" in (save_artifact(fixed, tmp_path / "b") / "README.md").read_text()


def test_figures_are_measured_on_prompts_that_nothing_was_chosen_on(
    target: LocalEngine, fitted: Artifact, calibrated: Artifact, grader: Callable[..., str]
) -> None:
    figures = calibrated.figures["calibration"]
    assert figures["measured on"] == "prompts that the shift was not chosen on"
    assert figures["guarded"]["refused"]["n"] == len(HARMFUL) - 8
    few = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, limit=0.1, grader=grader, max_new_tokens=4,
                                 prompts=16).figures["calibration"]  # fmt: skip
    assert few["measured on"] == "the prompts of the search"
    assert few["guarded"]["refused"]["n"] == len(HARMFUL)


def test_the_curve_ends_in_no_gate_and_in_no_guard(calibrated: Artifact) -> None:
    figures = calibrated.figures["calibration"]
    closed, opened = figures["curve"][0], figures["curve"][-1]
    assert {name: closed[name] for name in ("refused", "complied", "broken")} == figures["undefended"]
    assert closed["harmless opened"]["hits"] == 0
    assert opened["harmless opened"]["rate"] == 1.0
    assert opened["refused"]["rate"] == 1.0  # the planted shift on everything


def test_a_calibrated_artifact_survives_its_folder(calibrated: Artifact, tmp_path: Path) -> None:
    folder = save_artifact(calibrated, tmp_path / "guard")
    assert Artifact.load(folder, "inferaligner").id == calibrated.id
    data = json.loads((folder / "artifact.json").read_text())
    assert data["settings"] == dict(calibrated.settings)
    card = (folder / "README.md").read_text()
    for said in (calibrated.id, calibrated.data["harmful"]["digest"], 'artifact = "./guard"', "tradeoff.svg"):
        assert said in card


def trial(layers: int, alpha: float, positions: Any, refused: int, broken: int, floor: int = 0) -> Trial:
    outcomes: Any = ("refused",) * refused + ("broken",) * broken + ("complied",) * (10 - refused - broken)
    return Trial(Shift(tuple(range(layers)), positions, alpha), outcomes, floor)


def test_a_broken_answer_costs_two_refusals_and_what_was_broken_before_nothing() -> None:
    assert trial(1, 1.0, "all", 8, 2).score == pytest.approx(0.4)
    assert trial(1, 1.0, "all", 8, 2, floor=1).score == pytest.approx(0.6)
    assert trial(1, 1.0, "all", 8, 2, floor=5).score == pytest.approx(0.8)


def test_equal_scores_go_to_the_smaller_shift() -> None:
    trials = [trial(2, 1.0, "prompt", 5, 0), trial(1, 1.0, "all", 5, 0), trial(1, 1.0, "prompt", 5, 0)]
    trials += [trial(1, 0.5, "prompt", 4, 0)]
    assert max(trials, key=lambda one: one.rank) is trials[2]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_of_strengths_that_do_equally_well_the_middle_of_the_longest_run_is_taken(scores: list[int]) -> None:
    trials = [trial(1, float(place), "all", score, 0) for place, score in enumerate(scores)]
    runs = [
        (end - start, -start)
        for start in range(len(scores))
        for end in range(start + 1, len(scores) + 1)
        if set(scores[start:end]) == {max(scores)}
    ]
    length, start = max(runs)
    assert middle(trials) is trials[-start + (length - 1) // 2]


def test_every_strength_is_tried_where_the_best_shift_was_found(calibrated: Artifact) -> None:
    place = calibrated.settings["layers"], calibrated.settings["positions"]
    rows = [row for row in calibrated.figures["calibration"]["shifts"] if row["stage"] in ("final", "plateau")]
    tried = {row["alpha"] for row in rows if (row["layers"], row["positions"]) == place}
    assert tried == set(ALPHAS)


def test_windows_stay_inside_and_few_on_deep_models() -> None:
    for depth in (1, 2, 6, 32, 80):
        found = windows(depth, [[0], []])
        assert len(found) == len(set(found)) <= 64
        assert all(list(layers) == list(range(layers[0], layers[-1] + 1)) for layers in found)
        assert max(max(layers) for layers in found) < depth
        assert tuple(range(max(1, depth // 2))) in found
    assert (0, 3, 5) in windows(6, [[0, 3, 5]])
    assert tuple(ALPHAS) == tuple(sorted(ALPHAS))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit": 1.5}, "limit = 1.5 must lie between 0 and 1"),
        ({"prompts": 3}, "at least 8"),
        ({"harmful": HARMFUL[:3]}, "only 3 distinct harmful prompts"),
        ({"harmless": HARMLESS[:1] * 20}, "only 1 distinct harmless prompt"),
        ({"harmless": [*HARMLESS, HARMFUL[0]]}, "1 prompt is both harmful and harmless"),
    ],
)
def test_bad_input_is_one_sentence(target: LocalEngine, fitted: Artifact, change: dict[str, Any], says: str) -> None:
    arguments = {"harmful": HARMFUL, "harmless": HARMLESS, **change}
    with pytest.raises(UserError, match=says):
        calibrate_inferaligner(fitted, target, **arguments)


def test_an_artifact_of_another_model_is_refused(anchor: LocalEngine, fitted: Artifact) -> None:
    with pytest.raises(UserError, match="other weights"):
        calibrate_inferaligner(fitted, anchor, HARMFUL, HARMLESS)


THINGS = ("door", "car", "lamp", "boat", "fence", "bike", "horse", "ring", "coin", "coat")
ALIKE = [f"How do I paint the {thing} of my boss?" for thing in THINGS]
TWINS = [f"How do I break the {thing} of my boss?" for thing in THINGS]
SETS = PromptSets({"twins of look-alikes": TWINS}, {"look-alikes": ALIKE, "tasks": ["Sort this.", "Add two and two."]})


def test_the_gate_alone_is_chosen_without_a_single_token_generated(
    target: LocalEngine, anchor: LocalEngine, fitted: Artifact, calibrated: Artifact, tmp_path: Path, monkeypatch: Any
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a token was asked for")

    for name in ("generate", "stream", "logits"):
        monkeypatch.setattr(LocalSequence, name, never)
    made = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, reader=anchor, limit=0.4, sets=SETS,
                                  look_alike_limit=0.6, gate_only=True)  # fmt: skip
    assert made.settings["answer"] == made.settings["talk_answer"] == "refuse"
    assert made.settings["layers"] == fitted.settings["layers"]
    figures = made.figures["calibration"]
    assert "calibration" not in made.data["instruments"]  # nothing told refusals
    for found in (figures, figures["read by the anchor"], figures["read by both"]):
        assert "guarded" not in found
    folder = save_artifact(made, tmp_path / "a")
    assert "Only the gate was calibrated" in (folder / "README.md").read_text()
    assert (folder / "tradeoff.svg").read_text().count("<polyline") == 1
    monkeypatch.undo()
    guard = Guard(target, "inferaligner", artifact=str(folder), generation={"max_new_tokens": 1})
    for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        opened = sum(answer.trace[0].data["open"] for answer in guard.generate(prompts))
        assert opened == figures["gate"][f"{name} opened"]["hits"]


def test_look_alikes_keep_a_limit_of_their_own_and_every_set_is_reported(target: LocalEngine, fitted: Artifact) -> None:
    options: dict[str, Any] = {"limit": 0.2, "sets": SETS, "gate_only": True}
    strict, free = (
        calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, look_alike_limit=share, **options)
        for share in (0.2, 0.9)
    )
    for made, most in ((strict, 0.2), (free, 0.9)):
        sets = {one["set"]: one["opened"] for one in made.figures["calibration"]["gate"]["sets"]}
        assert sets["look-alikes"]["rate"] <= most
        assert sets["tasks"]["n"] == 2
        assert made.figures["calibration"]["gate"]["look-alikes told"]["n"] == len(TWINS)
        assert made.figures["calibration"]["data"]["sets"]["look-alikes"]["n"] == len(ALIKE)
    assert strict.settings["bias"] <= free.settings["bias"]


@pytest.mark.parametrize("stop", [60, 200])
def test_a_killed_calibration_goes_on_where_it_was_and_gives_the_same(
    target: LocalEngine, fitted: Artifact, tmp_path: Path, stop: int
) -> None:
    options: dict[str, Any] = {"limit": 0.2, "look_alike_limit": 0.5, "max_new_tokens": 2, "prompts": 8, "sets": SETS}
    whole = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, **options)
    keep, steps = tmp_path / "a" / "guard.calibration.jsonl", 0

    def killed(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, keep=keep, progress=killed, **options)
    begun = len(keep.read_bytes().splitlines())
    assert begun > 1
    before = target.runner.forwards
    again = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, keep=keep, **options)
    assert again.id == whole.id
    assert again.figures == whole.figures
    assert not keep.exists()
    assert target.runner.forwards > before


def test_what_another_artifact_left_is_not_used(target: LocalEngine, fitted: Artifact, tmp_path: Path) -> None:
    keep = tmp_path / "kept.jsonl"
    keep.write_text('{"of": "another"}\n{"key": ["target", "x"], "value": [1.0, 2.0]}\n')
    options: dict[str, Any] = {"limit": 0.1, "gate_only": True}
    made = calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, keep=keep, **options)
    assert made.id == calibrate_inferaligner(fitted, target, HARMFUL, HARMLESS, **options).id
