import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bnkit.experiments.initialisation import initialise_, parse_scheme

SCHEMES = ["glorot", "he", "normal:0.05"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)
    )


def arrays(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_seed_gives_one_set_of_arrays_and_another_seed_another(scheme):
    drawn = []
    for seed in (3, 3, 4):
        model = net()
        initialise_(model, scheme, generator=seeded(seed))
        drawn.append(arrays(model))
    for name in ("0.weight", "3.weight"):
        assert torch.equal(drawn[0][name], drawn[1][name])
        assert not torch.equal(drawn[0][name], drawn[2][name])


@pytest.mark.parametrize(
    ("scheme", "by_hand"),
    [
        ("glorot", nn.init.xavier_uniform_),
        ("he", nn.init.kaiming_normal_),
        ("normal:0.05", lambda w, generator: nn.init.normal_(w, std=0.05, generator=generator)),
    ],
)
def test_layers_are_drawn_by_torch_in_the_order_of_named_modules(scheme, by_hand):
    model, generator = net(), seeded()
    initialise_(model, scheme, generator=seeded())
    for layer in (model[0], model[3]):
        assert torch.equal(
            layer.weight, by_hand(torch.empty_like(layer.weight), generator=generator)
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_biases_become_zero_and_all_else_stays(scheme):
    model = nn.ModuleList([net(), nn.Embedding(3, 2), nn.LSTM(2, 2)])
    before = arrays(model)
    initialise_(model, scheme, generator=seeded())
    drawn = {"0.0.weight", "0.3.weight", "0.3.bias"}
    assert not model[0][3].bias.any()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n not in drawn)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


# layer, fan in and fan out: connections per output and per input, of groups in what torch counts
FANS = [
    pytest.param(nn.Linear(400, 300), 400, 300, id="linear"),
    pytest.param(nn.Conv1d(40, 60, 5), 200, 300, id="convolution 1d"),
    pytest.param(nn.Conv3d(20, 10, 3), 540, 270, id="convolution 3d"),
    pytest.param(nn.Conv2d(64, 128, 3, groups=4), 144, 1152, id="grouped: inputs of one group"),
    pytest.param(nn.ConvTranspose2d(50, 30, 3), 450, 270, id="transposed: axes swapped"),
    pytest.param(
        nn.ConvTranspose2d(64, 128, 3, groups=4), 144, 288, id="grouped and transposed: both"
    ),
]


@pytest.mark.parametrize(("layer", "fan_in", "fan_out"), FANS)
def test_he_has_variance_two_over_fan_in(layer, fan_in, fan_out):
    del fan_out
    initialise_(layer, "he", generator=seeded())
    error = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors of a sample deviation
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=error)


@pytest.mark.parametrize(("layer", "fan_in", "fan_out"), FANS)
def test_glorot_fills_its_interval_and_no_more(layer, fan_in, fan_out):
    initialise_(layer, "glorot", generator=seeded())
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.99 * bound < layer.weight.max() <= bound
    assert 0.99 * bound < -layer.weight.min() <= bound


def test_normal_has_the_standard_deviation_that_was_asked_for():
    layer = nn.Linear(500, 400)
    initialise_(layer, "normal:5", generator=seeded())
    assert layer.weight.std().item() == pytest.approx(5, rel=0.01)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.06)


def test_default_leaves_weights_biases_and_the_generator_alone():
    model, generator = net(), seeded()
    before, state = arrays(model), generator.get_state()
    initialise_(model, "default", generator=generator)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(generator.get_state(), state)


def test_a_weight_under_two_names_is_drawn_once_for_each_layer_and_stays_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    initialise_(model, "he", generator=seeded())
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("hee", "unknown initialisation 'hee': did you mean 'he'\\? Choose from default, glorot"),
        ("gloro", "did you mean 'glorot'"),
        ("he:2", "unknown initialisation 'he:2'"),
        ("", "unknown initialisation ''"),
        ("normal", "'normal' needs a positive, finite standard deviation .* as in 'normal:0.05'"),
        ("normal:", "'normal:' needs a positive"),
        ("normal:-1", "'normal:-1' needs a positive"),
        ("normal:0", "'normal:0' needs a positive"),
        ("normal:inf", "'normal:inf' needs a positive, finite"),
        ("normal:nan", "'normal:nan' needs a positive"),
        ("normal:small", "'normal:small' needs a positive"),
    ],
)
def test_a_scheme_that_is_none_is_refused(scheme, message):
    with pytest.raises(ValueError, match=message):
        parse_scheme(scheme)


def test_a_model_without_layers_to_draw_is_refused():
    with pytest.raises(
        ValueError, match=r"BatchNorm1d has no linear or convolution layer.*default"
    ):
        initialise_(nn.BatchNorm1d(3), "he", generator=seeded())


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_computed_parameter_is_refused_before_anything_is_drawn(name):
    model = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3), name, 0))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"the {name} of layer '1' is computed .* first, then add"):
        initialise_(model, "he", generator=seeded())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layer_without_a_shape_is_refused():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="layer '0' has no shape yet: run the model on an example"):
        initialise_(model, "he", generator=seeded())
