from dataclasses import replace
from functools import partial

from bnkit.experiments.settings import Settings
from bnkit_claims.published import paired, udacity
from bnkit_claims.published.experiment import Repetition


def test_a_paired_experiment_gives_a_value_for_each_seed_and_side(tmp_path, monkeypatch):
    on_digits = partial(paired.plan_comparison)
    monkeypatch.setattr(
        paired,
        "plan_comparison",
        lambda network, _, **rest: on_digits(network, "digits", **rest),
    )
    settings = Settings(learning_rates=[0.1], activations=["relu"], steps=20, evaluate_every=20)
    experiment = paired.paired(
        "small",
        "a small one",
        source="nobody",
        network="mlp",
        settings=settings,
        plain=paired.PLOT_ONLY,
        batch_norm=paired.Accuracies(90.0, 91.0),
        note="",
    )
    how = Repetition(tmp_path, None, seeds=2, jobs=1, progress=False)
    found = experiment.run(how)
    assert set(found.values) == {quantity.name for quantity in experiment.quantities}
    for quantity in experiment.quantities:
        assert len(found.values[quantity.name]) == 2
        assert all(0 < value < 100 for value in found.values[quantity.name])
    assert experiment.run(replace(how, progress=False)).values == found.values  # kept, not rerun
    assert len(list((tmp_path / "trials").glob("*.json"))) == 4


def test_the_lesson_has_its_eighteen_rows_and_those_run_twice_have_one_setting():
    rows = {experiment.name: experiment for experiment in udacity.EXPERIMENTS}
    assert [f"udacity-{n}" for n in range(1, 19)] == list(rows)[:18]
    for again, first in udacity.AGAIN.items():
        settings = [rows[f"udacity-{n}"].run.args[2] for n in (again, first)]
        assert settings[0] == settings[1]


def test_published_figures_are_in_percent_and_plots_have_none():
    rows = {experiment.name: experiment for experiment in udacity.EXPERIMENTS}
    published = [quantity.published for quantity in rows["udacity-4"].quantities]
    assert published == [9.58, 9.80, 98.44, 98.34]
    assert {
        q.published
        for q in paired.paired(
            "n",
            "t",
            source="",
            network="mlp",
            settings=Settings(),
            plain=paired.PLOT_ONLY,
            batch_norm=paired.PLOT_ONLY,
            note="",
        ).quantities
    } == {None}
