import re
import subprocess
import sys

import pytest
from typer.main import get_command

from bnkit.cli import app
from cli.commands import run

COMMANDS = get_command(app).commands


def as_one_line(text):
    return " ".join(re.sub("[│╭╰─╮╯]", " ", text).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_and_explains_every_option(name):
    command = COMMANDS[name]
    code, stdout, _ = run(f"{name} --help")
    shown = as_one_line(stdout)
    assert code == 0
    assert "Exit codes" in shown
    for parameter in command.params:
        assert parameter.help
        flags = [option for option in parameter.opts if option.startswith("--")]
        assert all(flag in shown for flag in flags)
        assert parameter.help.split()[0] in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_examples_whose_options_there_are(name):
    examples = re.findall(rf"`[^`]*bnkit {name}\b([^`]*)`", COMMANDS[name].help)
    used = {option for example in examples for option in re.findall(r"--[\w-]+", example)}
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert examples
    assert used <= known


def test_without_a_command_the_commands_are_listed():
    _, stdout, stderr = run("")
    assert all(name in stdout + stderr for name in COMMANDS)


@pytest.mark.parametrize("heavy", "altair joblib loky numba sklearn scipy vl_convert".split())
def test_importing_the_command_line_does_not_import(heavy, loaded_modules):
    assert heavy not in loaded_modules


@pytest.fixture(scope="module")
def loaded_modules():
    program = (
        "import sys, torch; old = {*sys.modules}; import bnkit.cli; print(*{*sys.modules} - old)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
