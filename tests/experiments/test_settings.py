import json
import math
import re
from typing import get_type_hints

import pytest

from bnkit.experiments.settings import Settings, SettingsOptions

WHOLE = ["batch_size", "steps", "evaluate_every", "epochs"]


def refused(error=ValueError, **settings):
    with pytest.raises(error) as raised:
        Settings(**settings)
    return str(raised.value)


def test_the_defaults_are_allowed_and_go_to_json():
    document = json.loads(json.dumps(Settings().to_json()))
    assert document["learning_rates"] == [0.01, 0.1, 1.0, 3.0]
    assert document["hidden"] == [100, 100, 100]
    assert document["epochs"] is None
    assert document["sides"] == ["plain", "batch norm"]
    assert Settings(**{**document, "sides": ("plain", "batch")}) == Settings()


def test_what_type_checkers_see_are_the_fields():
    assert get_type_hints(SettingsOptions) == get_type_hints(Settings)


def test_lists_become_tuples_so_that_settings_can_be_hashed():
    settings = Settings(learning_rates=[0.1, 1], activations=["relu"], hidden=[])
    assert (settings.learning_rates, settings.activations) == ((0.1, 1), ("relu",))
    assert settings.hidden == ()
    assert hash(settings) == hash(
        Settings(learning_rates=(0.1, 1), activations=("relu",), hidden=())
    )


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [0, -3, 2.0, True, "5"])
def test_counts_are_integers_of_at_least_one(name, value):
    assert refused(**{name: value}) == f"`{name}` is {value!r}: pass an integer ≥ 1"


@pytest.mark.parametrize("name", [n for n in WHOLE if n != "epochs"])
def test_only_the_epochs_may_be_none(name):
    assert refused(**{name: None}) == f"`{name}` is None: pass an integer ≥ 1"


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_hidden_layers_have_an_integer_number_of_units(size):
    assert refused(hidden=[10, size]) == f"`hidden` is {size!r}: pass an integer ≥ 1"


@pytest.mark.parametrize("name", ["learning_rates", "activations"])
def test_a_sweep_needs_something_to_sweep(name):
    assert refused(**{name: []}) == f"`{name}` is empty: pass at least one"


@pytest.mark.parametrize(
    ("name", "values"), [("learning_rates", (1.0, 0.1, 1)), ("activations", ("relu", "relu"))]
)
def test_nothing_is_swept_twice(name, values):
    assert refused(**{name: values}) == f"`{name}` is {values}: pass each once"


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan, "0.1", None])
def test_learning_rates_are_positive_and_finite(value):
    wanted = f"`learning_rates` holds {value!r}: pass a positive, finite number"
    assert refused(learning_rates=[0.1, value]) == wanted


@pytest.mark.parametrize("value", [0.0, -1e-5, math.inf, math.nan, None])
def test_eps_is_positive_and_finite(value):
    assert refused(eps=value) == f"`eps` is {value!r}: pass a positive, finite number"


@pytest.mark.parametrize("name", ["momentum"])
@pytest.mark.parametrize("value", [0, -0.5, 1.001, 90, math.nan, None, "0.9"])
def test_shares_lie_above_zero_and_up_to_one(name, value):
    assert refused(**{name: value}) == f"`{name}` is {value!r}: pass a number above 0 and up to 1"


@pytest.mark.parametrize("name", ["momentum"])
def test_one_is_a_share(name):
    assert getattr(Settings(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"optimizer": "adma"},
            (
                "unknown optimizer 'adma': did you mean 'adam' or 'adamw'? Choose from adam, "
                "adamw, momentum, sgd"
            ),
        ),
        (
            {"loss": "hinge"},
            (
                "unknown loss 'hinge': choose from bce, cross-entropy, huber, mae, mse, "
                "sigmoid-cross-entropy"
            ),
        ),
        (
            {"placement": "before"},
            (
                "unknown placement 'before': did you mean 'before_activation'? "
                "Choose from after_activation, before_activation, every_conv"
            ),
        ),
        (
            {"init": "xavier"},
            "unknown initialisation 'xavier': choose from default, glorot, he, normal:STD",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_choices(settings, text):
    assert refused(**settings) == text


def test_an_initialisation_needs_its_standard_deviation():
    assert re.search("'normal:' needs a positive, finite standard", refused(init="normal:"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rates", 0.1),
        ("hidden", 100),
        ("activations", "relu"),  # or its letters would be the activations
    ],
)
def test_one_value_instead_of_several_is_refused(name, value):
    wanted = f"`{name}` is {value!r}: pass several in a list, or one as [{value!r}]"
    assert refused(TypeError, **{name: value}) == wanted


@pytest.mark.parametrize("name", ["init", "placement", "precision", "device"])
@pytest.mark.parametrize("value", [max, 0.05, None])
def test_names_are_text(name, value):
    assert refused(TypeError, **{name: value}) == f"`{name}` is {value!r}: pass its name"


@pytest.mark.parametrize("seeds", ["all", "3", 0, True, 2.5])
def test_seeds_are_a_number_or_auto(seeds):
    with pytest.raises(ValueError, match=r"^`seeds` is .*: pass an integer ≥ 1, or 'auto'$"):
        Settings(seeds=seeds)
    assert Settings(seeds="auto", budget=60).seeds == "auto"


def test_a_budget_is_for_seeds_that_are_added():
    with pytest.raises(ValueError, match=r"^`budget` is 60 and `seeds` is 3: a budget is for"):
        Settings(budget=60)


@pytest.mark.parametrize("target", [float("nan"), float("inf"), "high"])
def test_a_target_is_a_finite_number(target):
    with pytest.raises(ValueError, match=r"^`target` is .*: pass a finite number, or 'best'$"):
        Settings(target=target)


@pytest.mark.parametrize("name", ["optimizer", "loss", "metric", "schedule"])
def test_what_is_neither_a_name_nor_a_function_is_refused(name):
    wanted = f"`{name}` is 0.05: pass its name, or a function of your own"
    assert refused(TypeError, **{name: 0.05}) == wanted
    assert getattr(Settings(**{name: max}), name) is max
    assert Settings(**{name: max}).to_json()[name] == "builtins:max"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"clip": 0}, "`clip` is 0: pass a positive, finite number"),
        ({"weight_decay": -1}, "`weight_decay` is -1: pass a finite number ≥ 0"),
        ({"precision": "float8"}, "unknown precision 'float8': did you mean 'float"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
    ],
)
def test_a_wrong_training_is_refused(setting, text):
    assert refused(ValueError, **setting).startswith(text)
