"""README and docs do what they print: their programs run, their outputs are what comes out."""

import json
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bnkit
from cli.commands import run
from pages import check_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch):
    check_page(page, tmp_path, monkeypatch)


def test_the_table_of_fine_tuning_is_made_from_the_kept_figures():
    finetuning = runpy.run_path(str(ROOT / "benchmarks" / "finetuning.py"))
    figures = json.loads((ROOT / "benchmarks" / "finetuning.json").read_text())
    assert finetuning["table"](figures) in (ROOT / "docs" / "insert.md").read_text()


NET = """
import torch
from torch import nn

def plain():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99), *list(plain())[1:])

def loaders():
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(2, (8,))) for _ in range(4)]
    return batches, batches

if __name__ == "__main__":
    torch.save(build().state_dict(), "a.pt")
"""
BRIEF = {"steps": 4, "evaluate_every": 2}
SHEET = (ROOT / "docs" / "cheatsheet.md").read_text()


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The module of which the cheat sheet speaks, in the current folder, with its a.pt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    yield SimpleNamespace(**runpy.run_path("net.py", run_name="__main__"))
    sys.modules.pop("net", None)


def test_every_line_of_the_cheat_sheet_works(net, monkeypatch):
    monkeypatch.setattr(bnkit, "compare", partial(bnkit.compare, **BRIEF))
    # Lightning's tests show it.
    monkeypatch.setattr(bnkit.Monitor, "lightning_callback", lambda every: every)
    sections = re.findall(r"## ([^\n]*)\n```py\n(.*?)```", SHEET, re.DOTALL)
    assert len(sections) == 9
    batches = net.loaders()[0]
    for title, program in sections:
        build = net.plain if title in ("Would it help?", "Put it in") else net.build
        model = build()
        names = {
            "bnkit": bnkit,
            "build": build,
            "loaders": net.loaders,
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), 0.1),
            "x": batches[0][0],
            "batch": batches[0],
            "batches": batches,
            "new_batches": batches,
            "layer": bnkit.BatchNorm2d(3, activation="relu"),
            "residual": batches[0][0],
            "plan_folding": bnkit.surgery.plan_folding,
            "train": lambda _: None,
        }
        exec(compile(program, title, "exec"), names)


@pytest.mark.usefixtures("net")
def test_every_command_of_the_cheat_sheet_works(tmp_path):
    (commands,) = re.findall(r"```console\n(.*?)```", SHEET, re.DOTALL)
    codes = {}
    for line in commands.splitlines():
        brief = "--steps 4 --seeds 1 --learning-rate 0.1 --jobs 1" if "compare" in line else ""
        codes[line.split()[2]], _, stderr = run(f"{line.removeprefix('$ bnkit ')} {brief}")
        assert not stderr.startswith("Error"), stderr
    # The doctor has found something.
    assert codes == {"compare": 0, "add": 1, "doctor": 1, "explain": 0, "fold": 0}
    assert (tmp_path / "b.pt").exists()
