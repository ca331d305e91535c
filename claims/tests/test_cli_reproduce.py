import json

import pytest
from typer.testing import CliRunner

from bnkit.cli.app import app
from bnkit_claims import cli as command
from bnkit_claims.published.experiment import Measured, PublishedExperiment, Quantity

run = CliRunner().invoke
ACCURACY = Quantity("test accuracy", "%", 95.0, bar=90.0)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    small = PublishedExperiment(
        "small", "a small one", "a page", (ACCURACY,), "One run.",
        run=lambda how: Measured({"test accuracy": (96.0,) * (how.seeds or 3)}),
    )  # fmt: skip
    big = PublishedExperiment(
        "big", "a big one", "a page", (ACCURACY,), "", needs="a thousand GPUs"
    )
    monkeypatch.setattr(command, "EXPERIMENTS", (small, big))


def test_experiments_are_listed_with_what_does_not_run():
    shown = run(app, ["reproduce", "--list"]).stdout
    assert "a small one" in shown
    assert "not run" in shown


def test_ours_stand_beside_the_published(tmp_path):
    result = run(app, ["reproduce", "small", "big", "--seeds", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert "(96.00–96.00)" in result.stdout
    assert "+1.00" in result.stdout
    assert "2/2" in result.stdout
    assert "it takes a thousand GPUs" in result.stdout
    kept = json.loads((tmp_path / "published.json").read_text())
    assert kept["figures"][0]["ours"] == [96.0, 96.0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["smaal"], "unknown experiment 'smaal': did you mean 'small'"),
        ([], "no experiment is named, and all of them take hours: see --list"),
    ],
)
def test_wrong_use_is_explained(arguments, sentence):
    result = run(app, ["reproduce", *arguments])
    assert result.exit_code == 2
    assert sentence in result.stderr
