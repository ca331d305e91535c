from dataclasses import replace

import pytest

from bnkit_claims.core.cases import Repetition, in_turn
from bnkit_claims.published import experiment as running
from bnkit_claims.published import inference
from bnkit_claims.published.experiment import BySeed

TOY = replace(
    inference.SETTINGS, data="digits", networks=(("mlp", 60, 0.3),), hidden=(16,), population=5
)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Processes take seconds to start; that cases run in them is shown elsewhere."""
    monkeypatch.setattr(running, "InProcesses", lambda _how: in_turn)


def test_single_images_by_batch_statistics_all_get_one_answer(tmp_path):
    how = Repetition(tmp_path, None, seeds=2, jobs=1, progress=False)
    found = BySeed(inference.demonstration, TOY)(how)
    assert set(found.values) == {quantity.name for quantity in inference.QUANTITIES}
    assert found.values[f"{inference.OWN}: {inference.MOST}"] == (100, 100)
    singly, whole = (
        found.values[f"{inference.OWN}: {part}"] for part in (inference.SINGLY, inference.WHOLE)
    )
    for one, together in zip(singly, whole, strict=True):
        assert one < 30 < together


def test_the_setting_and_the_figures_are_those_of_the_lesson():
    settings = inference.SETTINGS
    assert settings.networks == (("mlp", 2000, 0.01),)
    assert (settings.init, settings.batch_size) == ("normal:0.05", 60)
    assert (settings.momenta, settings.eps) == ((0.01,), 1e-3)  # TensorFlow's decay 0.99
    experiment = inference.EXPERIMENT
    published = [quantity.published for quantity in experiment.quantities]
    assert published == [95.28, 95.03, 5.0, 100.0, 95.78, 95.37, 97.0, None]


def test_as_many_seeds_as_the_settings_say_unless_told(tmp_path):
    def one(settings, seed):
        return {"seed": float(seed), "folder": settings.folder}

    own = BySeed(one, TOY)(Repetition(tmp_path))
    told = BySeed(one, TOY)(Repetition(tmp_path, tmp_path, seeds=1))
    assert own.values["seed"] == (0, 1, 2, 3, 4)
    assert told.values == {"seed": (0,), "folder": (str(tmp_path),)}
