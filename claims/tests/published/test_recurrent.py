from dataclasses import replace
from functools import partial

from bnkit_claims.claims.recurrent import CLAIM
from bnkit_claims.core.in_turn import in_turn
from bnkit_claims.published import recurrent
from bnkit_claims.published.experiment import Repetition

TOY = replace(CLAIM.sizes["toy"], pool=4)


def test_it_gives_an_accuracy_for_each_published_figure_and_seed(tmp_path, monkeypatch):
    made = []

    def sweep(*args, **options):
        made.append((args, options))
        return in_turn  # processes have tests of their own

    monkeypatch.setattr(recurrent, "Sweep", sweep)
    (experiment,) = recurrent.EXPERIMENTS
    small = replace(experiment, run=partial(recurrent.measured, TOY))
    found = small.run(Repetition(tmp_path, None, seeds=2, jobs=3, progress=False))
    assert made == [((tmp_path,), {"jobs": 3, "title": "recurrent-mnist", "progress": False})]
    assert list(found.values) == [quantity.name for quantity in experiment.quantities]
    for values in found.values.values():
        assert len(values) == 2
        assert all(0 <= value <= 100 for value in values)
    alone = recurrent.read(TOY, ("permuted", "gamma 0.1", 1))
    assert found.values["BN-LSTM, pixels permuted, test accuracy"][1] == round(
        100 * alone["test"], 4
    )


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
