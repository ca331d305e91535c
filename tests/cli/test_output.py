import io
import json
import math
import os

import pytest
import typer
from rich.console import Console

from bnkit.cli import output
from bnkit.cli.output import chatter_on_stderr, explained, print_result, refuse, working


class Result:
    def to_json(self):
        return {"error": math.inf, "layer": "0"}

    def __str__(self):
        return "a table"


def test_a_result_is_printed_as_text_or_as_json_that_every_reader_accepts(capsys):
    print_result(Result(), as_json=False)
    assert capsys.readouterr().out == "a table\n"
    print_result(Result(), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"error": None, "layer": "0"}


@pytest.mark.parametrize("error", [ValueError, TypeError, FileNotFoundError])
def test_errors_of_wrong_use_become_a_sentence_and_exit_code_two(error, capsys):
    with pytest.raises(typer.Exit) as ending, explained():
        raise error("do something else")
    assert ending.value.exit_code == 2
    assert capsys.readouterr() == ("", "Error: do something else\n")


def test_errors_of_ours_are_not_hidden():
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError


def test_a_refusal_inside_of_a_command_keeps_its_exit_code():
    with pytest.raises(typer.Exit) as ending, explained():
        refuse("the network is not changed", code=1)
    assert ending.value.exit_code == 1


@chatter_on_stderr()
def talk():
    print("from python", flush=True)  # noqa: T201  as people's code does
    os.system("echo from below")
    raise KeyError


def test_chatter_goes_to_stderr_and_stdout_is_given_back(capfd):
    with pytest.raises(KeyError):
        talk()
    print_result("a result", as_json=False)
    out, err = capfd.readouterr()
    assert out == "a result\n"
    assert set(err.split("\n")) == {"from python", "from below", ""}


@pytest.mark.parametrize("auto_refresh", [True, False])
def test_a_bar_shows_how_far_the_work_is(monkeypatch, auto_refresh):
    screen = io.StringIO()
    monkeypatch.setattr(output, "messages", Console(force_terminal=True, file=screen, width=80))
    with working("folding", auto_refresh=auto_refresh) as counted:
        assert list(counted(iter("abc"), total=3)) == ["a", "b", "c"]
    assert "folding" in screen.getvalue()
    assert "3/3" in screen.getvalue()


def test_where_no_one_looks_no_bar_is_printed(capsys):
    with working("folding") as counted:
        assert list(counted([1, 2], total=None)) == [1, 2]
    assert capsys.readouterr().err == ""
