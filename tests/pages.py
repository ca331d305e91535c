"""Pages of documentation: their programs run, and print what the page says."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys

BLOCK = re.compile(r"(<!-- run -->\n)?```(python|text|console)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(\.\d+)?([eE][-+]?\d+)?")


def blocks(page):
    return [(kind, text, bool(run)) for run, kind, text in BLOCK.findall(page.read_text())]


def check_page(page, folder, monkeypatch):
    """Run the programs of a page in an empty folder; assert that they print what it says."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    names, printed = {"__name__": "__main__"}, None
    for kind, text, run in blocks(page):
        if kind == "python":
            printed = execute(text, names, folder)
        elif kind == "text" and printed:
            assert shape_of(printed) == shape_of(text)
            printed = None
        elif kind == "console" and run:
            for line in text.splitlines():
                command(line.removeprefix("$ "))
    sys.modules.pop("my_code", None)


def execute(text, names, folder):
    """Run a program, or write it where its first line says; return what it printed."""
    title = re.match(r"# (\w+\.py)\n", text)
    if title:
        (folder / title[1]).write_text(text)
        return None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "<docs>", "exec"), names)
    return out.getvalue()


def shape_of(text):
    """Return printed text with its numbers left out: other processors round otherwise."""
    lines = [re.sub(r"[ ─]+", " ", NUMBER.sub("#", line)).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def command(line):
    program, *arguments = shlex.split(line)
    assert program == "bnkit"
    done = subprocess.run(
        [sys.executable, "-c", "from bnkit.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
