from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from factories import tiny_weights

from anchorlm import CausalModel, Guard
from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import LocalEngine
from anchorlm.evaluation import (
    Case,
    CompareRecipe,
    Embedded,
    Grader,
    RefusalGrader,
    attack_names,
    compare,
    figures,
    write_tables,
)
from anchorlm.evaluation.runs._contestants import Pool
from anchorlm.evaluation.runs._folder import weights
from anchorlm.evaluation.runs._setting import Setting
from anchorlm.evaluation.runs._stored import ANSWERS, RECIPE, read_answers, read_timings
from anchorlm.evaluation.runs._workers import records
from anchorlm.judging import Outcome
from anchorlm.records import Artifact, DefenseError, Request, Response, UserError

pytestmark = pytest.mark.slow

Write = Callable[..., Path]


def tables(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in write_tables(folder, figures(folder))]


def lines(folder: Path) -> int:
    return (folder / ANSWERS).read_bytes().count(b"\n")


def cut(folder: Path, keep: int) -> None:
    """Leaves the first answers, as a kill would."""
    kept = (folder / ANSWERS).read_bytes().splitlines(keepends=True)[:keep]
    (folder / ANSWERS).write_bytes(b"".join(kept))


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A model that a test may change."""
    return Path(shutil.copytree(model, tmp_path / "own"))


@pytest.fixture
def artifact(model: Path, tmp_path: Path) -> Path:
    """An artifact of InferAligner on the model."""
    things = ("door", "car", "lamp", "boat", "fence", "gate", "roof", "shed")
    harmful, harmless = ([f"How do I {verb} the {one}?" for one in things] for verb in ("smash", "paint"))
    target = LocalEngine(CausalModel.from_pretrained(model))
    return fit_inferaligner(target, target, harmful, harmless).save(tmp_path / "artifacts" / "small")


def change(artifact: Path) -> None:
    """Another artifact in the place of one."""
    found = Artifact.load(artifact)
    Artifact(found.kind, found.models, found.data, {**found.settings, "seen": 1}, {}, found.tensors).save(artifact)


@pytest.mark.parametrize("path", ["{own}", "embedded:small"])
def test_a_run_of_a_model_that_was_tuned_anew_in_its_place_does_not_go_on(
    write_recipe: Write, model: Path, own: Path, tmp_path: Path, path: str
) -> None:
    known = Embedded(lambda name: own, lambda *what: [], lambda case, text: "", lambda case, text: True)
    recipe = CompareRecipe.load(write_recipe(**{str(model): path.format(own=own)}), limit=1, timed=0)
    run = compare(recipe, tmp_path / "run", embedded=known)
    before = tables(run)
    compare(recipe, run, embedded=known)
    tiny_weights(max_position_embeddings=512, seed=1).save_pretrained(own)
    cut(run, 3)
    with pytest.raises(UserError, match=r"The model .* has changed since .* choose another folder"):
        compare(recipe, run, embedded=known)
    assert lines(run) == 3
    assert len(before) == len(tables(run))  # which need no model


def test_a_run_of_an_older_version_that_says_nothing_of_weights_goes_on(write_recipe: Write, tmp_path: Path) -> None:
    recipe = CompareRecipe.load(write_recipe(), limit=1, timed=0)
    run = compare(recipe, tmp_path / "run")
    about = json.loads((run / RECIPE).read_text("utf-8"))
    assert list(about.pop("weights"))
    (run / RECIPE).write_text(json.dumps(about), encoding="utf-8")
    compare(recipe, run)
    assert json.loads((run / RECIPE).read_text("utf-8"))["weights"]


def test_an_adapter_stands_for_its_base_too(write_recipe: Write, model: Path, own: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "../own"}', encoding="utf-8")
    recipe = CompareRecipe.load(write_recipe(**{str(model): str(adapter)}), limit=1)
    pool = Pool(recipe, tmp_path / "run")
    before = weights(Setting.of(recipe, pool), pool)
    assert before == weights(Setting.of(recipe, pool), pool)
    os.utime(own / "model.safetensors", ns=(1, 1))
    assert before != weights(Setting.of(recipe, pool), pool)


def test_a_run_with_an_artifact_that_was_fitted_anew_does_not_go_on(
    write_recipe: Write, artifact: Path, tmp_path: Path
) -> None:
    file = write_recipe(prefix_injection="ablation:./artifacts/{target}")
    recipe = CompareRecipe.load(file, limit=1, timed=0)
    run = compare(recipe, tmp_path / "run")
    compare(recipe, run)
    change(artifact)
    with pytest.raises(UserError, match=r"The artifact of small ablation.* has changed"):
        compare(recipe, run)


@pytest.mark.parametrize("damage", ["artifact.json", "artifact.safetensors", "nothing is there"])
def test_an_artifact_that_cannot_be_read_is_told_before_the_first_answer(
    write_recipe: Write, artifact: Path, tmp_path: Path, damage: str
) -> None:
    if damage == "nothing is there":
        shutil.rmtree(artifact)
    else:
        (artifact / damage).write_bytes(b"{")
    file = write_recipe(**{'name = "self_reminder"': 'name = "inferaligner"\nartifact = "./artifacts/{target}"'})
    with pytest.raises(UserError, match=r"damaged: make it again|no artifact that can be read") as caught:
        compare(CompareRecipe.load(file, limit=1), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_artifact_of_a_finished_run_is_one_sentence(
    write_recipe: Write, artifact: Path, tmp_path: Path
) -> None:
    recipe = CompareRecipe.load(write_recipe(prefix_injection="ablation:./artifacts/{target}"), limit=1, timed=0)
    run = compare(recipe, tmp_path / "run")
    (artifact / "artifact.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="damaged: make it again"):
        compare(recipe, run)


def test_that_nobody_may_grade_is_told_before_the_first_answer(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe(**{'name = "self_reminder"': 'name = "best_of_n"'})
    with pytest.raises(UserError, match="No one may grade reminded"):
        compare(CompareRecipe.load(file, limit=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _Out(Grader):
    """Cannot be asked about what is harmful."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def grade(self, case: Case, texts: Sequence[str]) -> list[Outcome]:
        if case.kind == "harmful":
            raise DefenseError("The judge is out: wait for it.")
        return await RefusalGrader().grade(case, texts)


def test_what_could_not_be_graded_is_graded_when_the_run_goes_on_and_is_not_answered_again(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CompareRecipe.load(write_recipe(), timed=0)
    whole = compare(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "graders", lambda self: [RefusalGrader(), _Out("words")])
        run = compare(recipe, tmp_path / "run")
    assert sum("ungraded" in one["grades"].values() for one in read_answers(run)) == 18
    with monkeypatch.context() as patch:
        patch.setattr(Guard, "respond", lambda *what: pytest.fail("answered again"))
        compare(recipe, run)
    assert tables(run) == tables(whole)
    before = lines(run)
    compare(recipe, run)
    assert lines(run) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_without_grades_is_made_anew_when_the_run_goes_on(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    recipe = CompareRecipe.load(write_recipe(), limit=2, timed=0)
    whole = compare(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "graders", lambda self: [_Out("refusal"), _Out("words")])
        run = compare(recipe, tmp_path / "run")
    assert {one["outage"] for one in read_answers(run) if one["attack"] == "best_of_n:2"} == {True}
    compare(recipe, run, workers=workers)
    assert tables(run) == tables(whole)


def test_what_an_outage_spoiled_is_answered_when_the_run_goes_on(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CompareRecipe.load(write_recipe(), limit=2, timed=0)
    whole = compare(recipe, tmp_path / "whole")
    respond = Guard.respond

    async def out(guard: Guard, request: Request) -> Response:
        if guard.defense.name == "self_reminder":
            raise DefenseError("The anchor is out: wait for it.")
        return await respond(guard, request)

    with monkeypatch.context() as patch:
        patch.setattr(Guard, "respond", out)
        run = compare(recipe, tmp_path / "run")
        before = lines(run)
        compare(recipe, run)  # it is out still
        assert lines(run) == before
    assert sum("error" in one for one in read_answers(run)) == before // 2
    compare(recipe, run)
    assert tables(run) == tables(whole)
    assert lines(run) == before + before // 2


@pytest.fixture
def scorer() -> Iterator[tuple[str, threading.Event]]:
    """Address of a scorer, and whether it works."""
    works = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if works.is_set() else 500)
            self.end_headers()
            self.wfile.write(json.dumps({"scores": [float(len(text)) for text in asked["responses"]]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score", works
    server.shutdown()
    server.server_close()


def test_a_refusal_for_want_of_a_scorer_is_answered_when_the_run_goes_on(
    write_recipe: Write, tmp_path: Path, scorer: tuple[str, threading.Event]
) -> None:
    url, works = scorer
    sections = "".join(f'[{role}]\nkind = "remote"\nurl = "{url}"\n\n' for role in ("cost", "reward"))
    file = write_recipe(**{'name = "self_reminder"': 'name = "beam_search"', "[judge]": f"{sections}[judge]"})
    recipe = CompareRecipe.load(file, limit=1, timed=0, attacks=["none"]).only("defenses", ["reminded"])

    def failed(folder: Path) -> set[bool]:
        return {any(step["kind"] == "fail_closed" for step in one["trace"]) for one in read_answers(folder)}

    run = compare(recipe, tmp_path / "run")
    assert failed(run) == {True}
    works.set()
    compare(recipe, run)
    assert failed(run) == {False}
    assert tables(run) == tables(compare(recipe, tmp_path / "whole"))


def test_a_prompt_that_is_too_long_is_not_tried_again(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CompareRecipe.load(write_recipe(prefix_injection="many_shot:40"), limit=1)
    run = compare(recipe, tmp_path / "run")
    before = tables(run)
    monkeypatch.setattr(CausalModel, "load", None)
    compare(recipe, run)
    assert tables(run) == before


def test_a_try_that_fails_leaves_a_search_its_others(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_recipe(**{"best_of_n:2": "suffix:4"})
    recipe = CompareRecipe.load(file, limit=1, timed=0, attacks=["suffix:4"]).only("defenses", ["reminded"])
    calls, respond = count(), Guard.respond

    async def out(guard: Guard, request: Request) -> Response:
        if next(calls) == 2:
            raise DefenseError("The anchor is out: wait for it.")
        found = await respond(guard, request)
        return Response("I'm sorry, but I cannot help.", found.token_ids, found.finish_reason, found.usage, found.trace)

    with monkeypatch.context() as patch:
        patch.setattr(Guard, "respond", out)
        run = compare(recipe.replace({"data": {"bad": recipe.data["bad"]}}, where="x"), tmp_path / "run")
    (one,) = read_answers(run)
    assert (one["queries"], one["outage"]) == (4, True)
    assert one["text"] == "I'm sorry, but I cannot help."
    assert "error" not in one


def test_each_prompt_is_timed_once_however_many_are_asked_for(write_recipe: Write, tmp_path: Path) -> None:
    for timed in (1, 2, 2):
        run = compare(CompareRecipe.load(write_recipe(), attacks=["none"], timed=timed), tmp_path / "run")
    alone = [(one["defense"], one["data"], one["case"]) for one in read_timings(run) if "case" in one]
    assert len(alone) == len(set(alone)) == 2 * 2 * 2


def test_what_workers_did_together_has_times(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANCHORLM_CACHE", str(tmp_path / "cache"))  # in which nothing is
    run = compare(CompareRecipe.load(write_recipe(), limit=1, attacks=["none"], timed=0), tmp_path / "run", workers=2)
    found = read_timings(run)
    assert [one["defense"] for one in found if one["together"] == 2] in (
        ["undefended", "reminded"],
        ["reminded", "undefended"],
    )
    assert all(one["seconds"] > 0 and one["peak_memory"] > 0 for one in found)


WAITING = """
import os, sys, time
from pathlib import Path

from anchorlm.evaluation import CompareRecipe
from anchorlm.evaluation.runs._contestants import Pool
from anchorlm.evaluation.runs._setting import Setting
from anchorlm.evaluation.runs._workers import records


def wait(setting, pool, hand_over, pair):
    hand_over({"pid": os.getpid()})
    time.sleep(120)


if __name__ == "__main__":
    recipe, folder = CompareRecipe.load(sys.argv[1]), Path(sys.argv[2])
    setting = Setting.of(recipe, Pool(recipe, folder))
    for record in records(setting, folder, None, [("small", 0), ("small", 1)], 2, wait):
        print(record["pid"], flush=True)
"""


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps")
def test_workers_end_with_a_run_that_was_killed(write_recipe: Write, tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script), str(write_recipe()), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [parent.stdout.readline().strip() for _ in range(2)]
        assert all(map(_lives, workers))
        parent.kill()
    deadline = time.monotonic() + 30
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, workers))


def _lives(pid: str) -> bool:
    """Whether a process runs: one that has ended is a zombie until somebody asks for it."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout.strip()
    return bool(told) and not told.startswith("Z")


def _buggy(setting: Setting, pool: Pool, hand_over: Callable[[Mapping[str, Any]], None], pair: object) -> None:
    raise KeyError("left")


def test_a_bug_in_a_worker_stays_a_bug_with_its_traceback(write_recipe: Write, tmp_path: Path) -> None:
    recipe = CompareRecipe.load(write_recipe(), limit=1)
    setting = Setting.of(recipe, Pool(recipe, tmp_path))
    with pytest.raises(RuntimeError, match="KeyError: 'left'") as caught:
        list(records(setting, tmp_path, None, [("small", 0)], 1, _buggy))
    assert "in _buggy" in "".join(caught.value.__notes__)


def test_all_attacks_are_those_that_need_nothing_and_the_ablation_by_what_the_recipe_has(write_recipe: Write) -> None:
    plain = [name for name in attack_names() if not name.startswith(("file", "ablation"))]
    file = write_recipe()
    assert list(CompareRecipe.load(file, attacks=["all"]).attacks) == plain
    assert list(CompareRecipe.load(file, attacks=["role_play", "all", "suffix:4"]).attacks) == [*plain, "suffix:4"]
    file = write_recipe(**{'name = "self_reminder"': 'name = "inferaligner"\nartifact = "{out}/artifacts/{target}"'})
    recipe = CompareRecipe.load(file, attacks=["all"])
    assert list(recipe.attacks) == [*plain, "ablation:{out}/artifacts/{target}"]
    assert recipe.only("defenses", ["undefended"]).attacks == recipe.attacks
