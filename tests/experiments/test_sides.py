import math

import pytest
import torch
from torch import nn

import bnkit
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.experiment import experiment_of
from bnkit.experiments.settings import Settings
from bnkit.experiments.sides import name_of, with_other_norms, without_batch_norm
from bnkit.surgery import SurgeryError

EXAMPLE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv():
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(12, 2),
    )


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 2))


def normalised():
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)),
    )


def loaders():
    batch = EXAMPLE, torch.tensor([0, 1, 0, 1])
    return [batch], [batch]


def swap_relu(model):
    model[1] = nn.Tanh()
    return model


def returns_nothing(model):
    del model


def experiment(build, *sides):
    return experiment_of(build, loaders, Settings(sides=sides, steps=2))


@pytest.mark.parametrize(
    ("side", "groups"), [("group", 4), ("layer", 1), ("instance", 12)], ids=str
)
def test_another_norm_is_where_batch_norm_would_be_and_begins_as_new(side, groups):
    found = experiment(conv, "plain", "batch", side)
    plain, batch, other = (found.network(name, "as built", 3) for name in found.sides)
    norm = other[0].batchnorm
    assert (type(norm), norm.num_groups, norm.num_channels) == (nn.GroupNorm, groups, 12)
    assert torch.equal(norm.weight, torch.ones(12))
    assert torch.equal(norm.bias, torch.zeros(12))
    assert type(batch[0].batchnorm).__name__ == "BatchNorm2d"
    for network in (batch, other):  # the same initial arrays on all sides
        assert torch.equal(network[0].weight, plain[0].weight)
        assert network[0].bias is None


@pytest.mark.parametrize(("side", "dimensions"), [("layer", (1, 2)), ("instance", (2,))])
def test_they_compute_what_they_are_called(side, dimensions):
    channels = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(0))
    norm = with_other_norms(nn.Sequential(nn.BatchNorm1d(12)), f"{side} norm")
    mean = channels.mean(dimensions, keepdim=True)
    variance = channels.var(dimensions, unbiased=False, keepdim=True)
    expected = (channels - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(norm(channels), expected, rtol=1e-4, atol=1e-5)


def test_group_norm_has_as_many_groups_up_to_32_as_divide_the_channels():
    for channels in (1, 7, 12, 48, 64, 100):
        norm = with_other_norms(nn.Sequential(nn.BatchNorm2d(channels)), "group norm")[0]
        assert norm.num_groups == math.gcd(32, channels)


def test_ghost_batch_norm_has_small_virtual_batches():
    ghost = experiment(conv, "plain", "ghost").network("ghost batch norm", "as built", 0)
    assert ghost[0].batchnorm.virtual_batch_size == 16


def test_instance_norm_of_single_values_is_refused():
    found = experiment(dense, "plain", "instance")
    with pytest.raises(SurgeryError, match=r"in a NormalizedLinear a sample has one value: choose"):
        found.network("instance norm", "as built", 0)


def test_a_function_of_the_users_gets_a_copy_of_the_plain_network():
    found = experiment(conv, "plain", swap_relu)
    assert [*found.sides] == ["plain", "swap_relu"]
    plain, other = (found.network(name, "as built", 0) for name in found.sides)
    assert (type(plain[1]), type(other[1])) == (nn.ReLU, nn.Tanh)
    assert torch.equal(plain[0].weight, other[0].weight)


def test_a_function_that_returns_no_model_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(TypeError, match=r"'returns_nothing' returned a NoneType: it must return"):
        plan_comparison(
            conv, loaders, settings=Settings(sides=("plain", returns_nothing)), out=tmp_path
        )


def test_a_network_with_batch_norm_is_compared_with_itself_without():
    found = experiment(normalised, "plain", "batch", "group")
    plain, batch, group = (found.network(name, "as built", 1) for name in found.sides)
    assert type(batch[1]) is nn.BatchNorm2d
    assert batch[0].bias is None
    assert type(plain[1]) is nn.Identity
    assert type(group[1]) is nn.GroupNorm
    assert torch.equal(plain[0].weight, batch[0].weight)
    bound = 1 / math.sqrt(27)  # torch's, of 3 channels of 3×3
    assert plain[0].bias.abs().max() <= bound
    assert plain[0].bias.unique().numel() == 12
    again = found.network("plain", "as built", 1)
    assert torch.equal(again[0].bias, plain[0].bias)
    assert found.recipe.plan == ()


def test_biases_come_back_where_a_batch_norm_had_taken_them_and_only_there():
    model = nn.Sequential(
        *(nn.ConvTranspose2d(3, 6, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(486, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=True)),
        nn.BatchNorm1d(4),
    )
    before = model[6].bias.clone()
    plain = without_batch_norm(model, EXAMPLE)
    assert plain[0].bias.shape == (6,)
    assert plain[4].bias is None  # no batch norm followed it
    assert torch.equal(plain[6].bias, before)
    assert model[0].bias is None  # the user's own stays as it was


@pytest.mark.usefixtures("importable_tests")
def test_trials_of_three_sides_are_named_and_run():
    found = bnkit.compare(
        *(conv, loaders),
        sides=["plain", "batch", "group"],
        learning_rates=[0.1],
        seeds=1,
        steps=2,
        progress=False,
        jobs=1,
    )
    assert [trial.side for trial in found.trials] == ["plain", "batch norm", "group norm"]
    assert {trial.outcome for trial in found.trials} == {"finished"}
    assert found.settings["sides"] == ["plain", "batch norm", "group norm"]
    assert [*found.verdicts] == ["batch norm", "group norm"]


@pytest.mark.parametrize(
    ("sides", "text"),
    [
        (("plain",), r"^`sides` is \['plain'\]: pass two or more, each once$"),
        (("batch", "batch norm"), r"pass two or more, each once$"),
        (("plain", "grup"), r"^unknown side 'grup': did you mean 'group'\? Choose from batch, "),
    ],
)
def test_sides_are_two_or_more_that_are_known(sides, text):
    with pytest.raises(ValueError, match=text):
        Settings(sides=sides)


def test_names_are_short_or_whole():
    assert [name_of(side) for side in ("plain", "ghost", "instance norm", swap_relu)] == [
        *("plain", "ghost batch norm", "instance norm", "swap_relu")
    ]
