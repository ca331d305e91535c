from dataclasses import replace
from functools import partial

from bnkit_claims.claims.recurrent import CLAIM
from bnkit_claims.core.cases import Repetition, in_turn
from bnkit_claims.published import reading_pixels

TOY = replace(CLAIM.sizes["toy"], pool=4)


def test_it_gives_an_accuracy_for_each_published_figure_and_seed(tmp_path, monkeypatch):
    made = []

    def in_processes(how):
        made.append(how)
        return in_turn  # processes have tests of their own

    monkeypatch.setattr(reading_pixels, "InProcesses", in_processes)
    experiment = reading_pixels.EXPERIMENT
    small = replace(experiment, run=partial(reading_pixels.test_accuracies, TOY))
    how = Repetition(tmp_path, None, seeds=2, jobs=3, progress=False)
    found = small.measure(how)
    assert made == [replace(how, title="recurrent-mnist")]
    assert list(found.values) == [quantity.name for quantity in experiment.quantities]
    for values in found.values.values():
        assert len(values) == 2
        assert all(0 <= value <= 100 for value in values)
    alone = reading_pixels.read(TOY, ("permuted", "gamma 0.1", 1))
    assert found.values["BN-LSTM, pixels permuted, test accuracy"][1] == round(
        100 * alone["test"], 4
    )


def test_the_published_figures_stand_with_their_network_and_the_note_says_the_length():
    experiment = reading_pixels.EXPERIMENT
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
