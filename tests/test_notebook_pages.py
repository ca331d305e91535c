"""The notebooks of the docs run, and show what they are kept with."""

import re
import runpy
from pathlib import Path

import pytest

from pages import shape_of

nbformat = pytest.importorskip("nbformat", reason="Jupyter's packages are not installed")
pytest.importorskip("nbclient", reason="Jupyter's packages are not installed")
pytest.importorskip("ipykernel", reason="Jupyter's packages are not installed")

NOTEBOOKS = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "building" / "notebooks.py"))
TAG = re.compile(r"<style>.*?</style>|<[^>]+>", re.DOTALL)


@pytest.mark.parametrize("path", NOTEBOOKS["NOTEBOOKS"], ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_what_it_is_kept_with(path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # of Jupyter's own
    kept = outputs_of(nbformat.read(path, as_version=4))
    assert outputs_of(NOTEBOOKS["run"](path)) == kept


def outputs_of(notebook):
    """Return what each output shows, without its numbers: other processors round otherwise."""
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    assert not [each for each in outputs if each["output_type"] == "error"]
    return [shape_of(text_of(each)) for each in outputs]


def text_of(output):
    data = output.get("data", {})
    html = data.get("text/html")
    return TAG.sub("\n", html) if html else output.get("text") or data["text/plain"]
