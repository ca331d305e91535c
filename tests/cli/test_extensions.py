from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from bnkit.cli import extensions


def app_with(monkeypatch, *entries):
    monkeypatch.setattr(extensions, "entry_points", lambda **_: [*entries])
    app = typer.Typer()
    app.command("first")(lambda: None)
    extensions.add_extensions(app)
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


def say_hello():
    typer.echo("hello")
