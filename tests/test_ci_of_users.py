"""The action and the hook for the CI of users: they run, and end as the doctor does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli.commands import TESTS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


def environment(folder):
    """Return one in which `python` is this one, and the networks of the tests can be imported."""
    (folder / "python").symlink_to(sys.executable)
    paths = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": paths}


def act(folder, **inputs):
    """Run the step of the action as GitHub does, with inputs instead of their defaults."""
    given = {name: each.get("default", "") for name, each in ACTION["inputs"].items()}
    given |= {"install": ""} | {name.replace("_", "-"): text for name, text in inputs.items()}
    (step,) = ACTION["runs"]["steps"]
    variables = {
        name: given[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", text)[1]]
        for name, text in step["env"].items()
    }
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={**environment(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_action_annotates_and_fails_on_what_is_bad_enough(tmp_path):
    done = act(tmp_path, model="users:build", example="8,4", fail_on="info", sarif="found.sarif")
    assert done.returncode == 0, done.stderr  # a network without batch norm
    assert '"version": "2.1.0"' in (tmp_path / "found.sarif").read_text()


def test_wrong_use_of_the_action_fails_and_writes_nothing(tmp_path):
    done = act(tmp_path, model="users:nothing; touch broken", sarif="found.sarif")
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_every_input_of_the_action_reaches_the_doctor():
    (step,) = ACTION["runs"]["steps"]
    names = {name.upper().replace("-", "_") for name in ACTION["inputs"]}
    assert set(step["env"]) == names


def test_the_hook_is_a_command_of_the_doctor():
    program, *arguments = shlex.split(HOOK["entry"])
    assert [program, *arguments[:3]] == ["python", "-m", "bnkit", "doctor"]
    assert HOOK["pass_filenames"] is False
