"""What Ray Serve tells a user who made a mistake: a sentence, and no traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from clusters import Start, command, wait_for

pytest.importorskip("ray.serve", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["recipe=nowhere.toml"], "The recipe 'nowhere.toml' cannot be read (No such file or directory)"),
        (["recipe=broken.toml"], "The recipe broken.toml lacks defense"),
        (["recipe={recipe},broken/{recipe.name}"], "Two recipes are served as 'finance'"),
        (["recipe={recipe}", "replicas=0"], "replicas = '0' does not fit AnchorLM on Ray"),
        (["recipe={recipe}", "replicas=3", "max_replicas=2"], "max_replicas = '2' does not fit AnchorLM on Ray"),
        (["recipe={recipe}", "replica=2"], "AnchorLM on Ray has no setting 'replica'"),
        (["recipe={recipe}", "keys=nokeys.toml"], "nokeys.toml' cannot be read (No such file or directory)"),
        ([], "AnchorLM on Ray lacks recipe"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence_before_ray_starts(
    recipe: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "broken.toml").write_text('target = "x"\n')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / recipe.name).write_text(recipe.read_text("utf-8"))
    given = [one.format(recipe=recipe) for one in arguments]
    done = subprocess.run(command("serve", "run", "anchorlm.ray:app", *given), capture_output=True, text=True,
                          cwd=tmp_path, timeout=300)  # fmt: skip
    assert done.returncode == 2, done.stderr
    *_, told = done.stderr.strip().splitlines()
    assert told.startswith("Error: ")
    assert sentence in told
    assert "Traceback" not in done.stderr
    assert "Started a local Ray instance" not in done.stderr


def test_a_mistake_in_a_file_is_one_sentence_in_the_log(recipe: Path, start: Start, tmp_path: Path) -> None:
    log, file = tmp_path / "serve.log", tmp_path / "serve.yaml"
    file.write_text(
        "http_options: {host: 127.0.0.1, port: 0}\n"
        "applications:\n  - name: default\n    import_path: anchorlm.ray:app\n"
        f"    args: {{recipe: {recipe}, replicas: 0}}\n"
    )
    start("serve", "run", file, log=log)
    wait_for(lambda: "replicas = 0 does not fit AnchorLM on Ray" in log.read_text("utf-8"), log)
    assert "Traceback" not in log.read_text("utf-8")
