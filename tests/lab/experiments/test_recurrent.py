from dataclasses import replace
from functools import partial

from bnkit.lab.claims.recurrent import CLAIM
from bnkit.lab.experiments import recurrent
from bnkit.lab.experiments.experiment import Repetition

TOY = replace(CLAIM.sizes["toy"], pool=4)


def test_it_gives_an_accuracy_for_each_published_figure_and_seed_and_keeps_them(tmp_path):
    (experiment,) = recurrent.EXPERIMENTS
    small = replace(experiment, run=partial(recurrent.measured, TOY))
    how = Repetition(tmp_path, None, seeds=2, jobs=1, progress=False)
    found = small.run(how)
    assert list(found.values) == [quantity.name for quantity in experiment.quantities]
    for values in found.values.values():
        assert len(values) == 2
        assert all(0 <= value <= 100 for value in values)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(kept) == 8
    assert small.run(how).values == found.values
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == kept  # not rerun


def test_the_published_figures_stand_with_their_network_and_the_note_says_the_length():
    (experiment,) = recurrent.EXPERIMENTS
    published = {quantity.name: quantity.published for quantity in experiment.quantities}
    assert published == {
        "LSTM, pixels in order, test accuracy": 98.9,
        "BN-LSTM, pixels in order, test accuracy": 99.0,
        "LSTM, pixels permuted, test accuracy": 90.2,
        "BN-LSTM, pixels permuted, test accuracy": 95.4,
    }
    (settings,) = experiment.run.args
    assert f"of {(28 // settings.pool) ** 2} steps" in experiment.note
    assert f"{settings.steps * settings.batch_size // 55_000} epochs" in experiment.note
