from bnkit_claims.claims.pretrained import CLAIM
from bnkit_claims.published import fastai


def test_our_rule_changes_neither_loss_nor_accuracy_and_the_recipe_does():
    found = fastai.miniature(CLAIM.settings("toy"), 0)
    assert set(found) == {quantity.name for quantity in fastai.QUANTITIES}
    for what in ("loss", "accuracy"):
        before, ours, recipe = (
            found[f"{state}: test {what}"]
            for state in ("trained", "inserted by our rule", "inserted by the recipe")
        )
        assert abs(ours - before) < 1e-3
        assert abs(recipe - before) > 0.01


def test_training_and_fine_tuning_take_an_epoch_each_at_the_published_rate():
    settings = fastai.SETTINGS
    assert (settings.data, settings.network, settings.batch_size) == ("mnist", "vgg", 64)
    assert settings.steps == settings.fine_tuning_steps == 55_000 // 64
    assert (settings.optimizer, settings.fine_tuning_rate) == ("adam", 1e-5)


def test_the_published_figures_of_imagenet_are_told_but_not_compared():
    experiment = fastai.EXPERIMENT
    assert {quantity.published for quantity in experiment.quantities} == {None}
    assert experiment.name == "fastai-insertion"
    assert "4.7634" in experiment.note
