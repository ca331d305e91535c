from functools import partial

from bnkit.experiments.settings import Settings
from bnkit_claims.core.cases import Repetition
from bnkit_claims.published import experiment as running
from bnkit_claims.published.experiment import PairedTraining, PublishedExperiment, accuracies
from bnkit_claims.published.paired_trainings import AGAIN, UDACITY


def test_a_paired_experiment_gives_a_value_for_each_seed_and_side(tmp_path, monkeypatch):
    on_digits = partial(running.plan_comparison)
    monkeypatch.setattr(
        running,
        "plan_comparison",
        lambda network, _, **rest: on_digits(network, "digits", **rest),
    )
    settings = Settings(learning_rates=[0.1], activations=["relu"], steps=20, evaluate_every=20)
    experiment = PublishedExperiment(
        "small",
        "a small one",
        source="a page",
        quantities=accuracies(batch_norm=(90.0, 91.0)),
        note="",
        run=PairedTraining("mlp", settings),
    )
    how = Repetition(tmp_path, None, seeds=2, jobs=1, progress=False)
    found = experiment.measure(how)
    assert set(found.values) == {quantity.name for quantity in experiment.quantities}
    for quantity in experiment.quantities:
        assert len(found.values[quantity.name]) == 2
        assert all(0 < value < 100 for value in found.values[quantity.name])
    assert experiment.measure(how).values == found.values  # kept, not rerun
    assert len(list((tmp_path / "trials").glob("*.json"))) == 4


def test_the_lesson_has_its_eighteen_rows_and_those_run_twice_have_one_setting():
    rows = {experiment.name: experiment for experiment in UDACITY}
    assert [f"udacity-{n}" for n in range(1, 19)] == list(rows)[:18]
    for again, first in AGAIN.items():
        settings = [rows[f"udacity-{n}"].run.settings for n in (again, first)]
        assert settings[0] == settings[1]


def test_published_figures_are_in_percent_and_plots_have_none():
    rows = {experiment.name: experiment for experiment in UDACITY}
    published = [quantity.published for quantity in rows["udacity-4"].quantities]
    assert published == [9.58, 9.80, 98.44, 98.34]
    assert {quantity.published for quantity in accuracies()} == {None}
