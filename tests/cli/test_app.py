import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from bnkit.cli import app
from bnkit.cli.app import Extended
from cli.commands import run

GROUP = get_command(app)
COMMANDS = {name: GROUP.get_command(None, name) for name in GROUP.list_commands(None)}


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


def test_a_beginning_of_several_names_is_answered_with_them():
    code, _, stderr = run("co")
    assert code == 2
    assert "'co' may be compare or convert: type more of it." in as_one_line(stderr)


@pytest.mark.parametrize("heavy", "altair joblib loky sklearn scipy vl_convert".split())
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


# Commands of other distributions


def app_with(monkeypatch, *entries):
    module = sys.modules[Extended.__module__]  # `bnkit.cli.app` is the app itself
    monkeypatch.setattr(module, "entry_points", lambda **_: [*entries])
    app = typer.Typer(cls=Extended)
    app.command("first")(lambda: None)
    app.command("second")(lambda: None)
    return app


@pytest.mark.parametrize("command", ["claims", "reproduce"])
@pytest.mark.parametrize("more", [[], ["faster", "--data", "mnist"], ["--help"]])
def test_a_command_whose_distribution_is_missing_says_how_to_install_it(monkeypatch, command, more):
    done = CliRunner().invoke(app_with(monkeypatch), [command, *more])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.strip() == (
        f"Error: `bnkit {command}` comes with bnkit-claims, which is not installed: pip install "
        f"bnkit-claims, or in a checkout of bnkit pip install -c constraints.txt -e . -e ./claims"
    )


def test_a_command_of_another_distribution_runs_under_its_entry_point(monkeypatch):
    entry = EntryPoint("claims", f"{__name__}:say_hello", "bnkit.commands")
    monkeypatch.setattr(EntryPoint, "load", lambda _: say_hello)
    done = CliRunner().invoke(app_with(monkeypatch, entry), ["claims"])
    assert (done.exit_code, done.stdout) == (0, "hello\n")


def test_the_commands_of_other_distributions_are_listed_and_loaded_only_when_used(monkeypatch):
    entry = EntryPoint("claims", f"{__name__}:say_hello", "bnkit.commands")
    loaded = []
    monkeypatch.setattr(EntryPoint, "load", lambda _: loaded.append("claims") or say_hello)
    app = app_with(monkeypatch, entry)
    assert CliRunner().invoke(app, ["first"]).exit_code == 0
    assert loaded == []
    assert "claims" in CliRunner().invoke(app, ["--help"]).stdout
    assert CliRunner().invoke(app, ["nothing"]).exit_code == 2


def say_hello():
    typer.echo("hello")
