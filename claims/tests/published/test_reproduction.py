import json

import pytest

from bnkit_claims.core.cases import Repetition
from bnkit_claims.published.all_experiments import EXPERIMENTS
from bnkit_claims.published.experiment import Measured, PublishedExperiment, Quantity
from bnkit_claims.published.reproduction import Reproduced, Reproduction, reproduction

ACCURACY = Quantity("batch norm, test accuracy", "%", 95.0, bar=90.0)


def experiment(name, **how):
    return PublishedExperiment(name, "a title", "a page", (ACCURACY,), "One run.", **how)


def test_ours_stand_beside_the_published_with_difference_and_success_rate():
    figure = Reproduced("a", "one", ACCURACY, (96.0, 80.0, None, 97.0))
    assert figure.median == 96.0
    assert figure.difference == pytest.approx(1.0)
    assert str(figure.success) == "2/4"  # a run without a value does not succeed
    assert figure.row[2:4] == ("95", "96.00 (80.00–97.00)")


def test_a_plot_has_no_figure_to_differ_from():
    figure = Reproduced("a", "one", Quantity("accuracy", "%", None), (96.0,))
    assert (figure.difference, figure.success) == (None, None)
    assert figure.row[2] == figure.row[4] == "–"


def test_what_cannot_run_is_listed_with_its_figures_and_what_it_takes(tmp_path):
    needing = experiment("big", needs="a thousand GPUs")
    result = reproduction([(needing, needing.measure(Repetition(tmp_path)))])
    assert result.figures[0].row[2:4] == ("95", "not run")
    assert "big: One run. Not run here; it takes a thousand GPUs." in str(result)


def test_an_experiment_runs_or_says_what_it_needs():
    for how in ({}, {"run": lambda _: Measured({}), "needs": "time"}):
        with pytest.raises(ValueError, match="needs either `run` or `needs`"):
            experiment("neither", **how)


def test_a_reproduction_goes_through_json(tmp_path):
    ran = experiment("small", run=lambda _: Measured({ACCURACY.name: (91.0, None)}))
    result = reproduction([(ran, ran.measure(Repetition(tmp_path)))])
    assert Reproduction.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert "(91.00–91.00)" in str(result)
    assert "1/2" in str(result)


def test_every_experiment_has_its_own_name_and_something_published_or_said():
    names = [each.name for each in EXPERIMENTS]
    assert len(set(names)) == len(names)
    for each in EXPERIMENTS:
        assert each.note or any(quantity.published is not None for quantity in each.quantities)
