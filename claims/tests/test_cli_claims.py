import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from typer.testing import CliRunner

from bnkit.cli.app import app
from bnkit_claims import cli as command
from bnkit_claims.core.checked_claims import Checked
from bnkit_claims.core.claim import Claim, ClaimSettings
from bnkit_claims.core.evidence import Evidence, Part

run = CliRunner().invoke


def claim(name, measure):
    return Claim(
        name=name,
        statement="Twice is twice.",
        sources=(),
        measurement="doubled",
        criteria="equal",
        sizes=dict.fromkeys(("toy", "digits", "mnist"), ClaimSettings(seeds=1)),
        run=measure,
    )


def fails(_settings, _each):
    raise RuntimeError("no luck")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    found = claim("doubling", lambda *_: Evidence("2 times.", (Part("twice", "2", True),)))
    monkeypatch.setattr(command, "CLAIMS", (found, claim("unlucky", fails)))


def test_claims_are_listed_without_being_measured():
    result = run(app, ["claims", "--list"])
    assert result.exit_code == 0
    assert "doubling" in result.stdout
    assert "unlucky" in result.stdout
    listed = json.loads(run(app, ["claims", "doubling", "--list", "--json"]).stdout)
    assert listed == [{"name": "doubling", "statement": "Twice is twice."}]


def test_a_claim_is_measured_and_reported(tmp_path):
    result = run(app, ["claims", "doubling", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert "2 times" in result.stdout
    assert (tmp_path / "claims" / "doubling.html").is_file()
    shown = json.loads(run(app, ["claims", "doubling", "--out", str(tmp_path), "--json"]).stdout)
    assert shown["claims"][0]["evidence"]["verdict"] == "holds"


def test_a_claim_that_cannot_be_measured_ends_with_one(tmp_path):
    result = run(app, ["claims", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "no luck" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dubling"], "unknown claim 'dubling': did you mean 'doubling'"),
        (["--data", "minst"], "unknown data set 'minst': did you mean 'mnist'"),
        (["--seeds", "0"], "`seeds` is 0: pass an integer"),
        (["--executor", "spark"], "the executor 'spark' is not known: pass dask://host:port"),
        (["--executor-option", "num_gpus=1"], "--executor-option num_gpus=1 is for --executor"),
        (["--executor", "ray", "--jobs", "2"], "--jobs 2 is for this machine's processes, and"),
    ],
)
def test_wrong_use_is_explained(tmp_path, arguments, sentence):
    result = run(app, ["claims", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_a_cluster_measures_where_one_is_given(tmp_path, monkeypatch):
    asked, workers = [], ThreadPoolExecutor(1)

    def at(*typed):
        asked.append(typed)
        return nullcontext(workers)

    def check(_claims, _data, how):
        asked.append(how.running)
        return Checked({})

    monkeypatch.setattr(command, "engine_at", at)
    monkeypatch.setattr(command, "check_claims", check)
    options = "--executor dask://a:1 --executor-option x=1 --trial-timeout 60".split()
    result = run(app, ["claims", *options, "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert asked[0] == ("dask://a:1", ["x=1"], tmp_path)
    assert asked[1] == {
        "jobs": None,
        "progress": True,
        "trial_timeout": 60.0,
        "executor": workers,
        "code_by_value": False,
    }
