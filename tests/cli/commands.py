"""Running a command in this process, as its tests do."""

import shlex
from pathlib import Path

from typer.testing import CliRunner

import users
from bnkit.cli import app

TESTS = Path(users.__file__).parent


def run(text, *more):
    """Run a command; return exit code, stdout and stderr."""
    done = CliRunner().invoke(app, [*shlex.split(text), *more])
    return done.exit_code, done.stdout, done.stderr
