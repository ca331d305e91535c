import itertools
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnkit.experiments.data import load
from bnkit.experiments.experiment import AS_BUILT, experiment_of
from bnkit.experiments.loaders import seed_everything
from bnkit.experiments.results import SIDES
from bnkit.experiments.settings import Settings
from bnkit.experiments.training import Training, train

SETTINGS = Settings()
INPUTS = torch.arange(96.0).view(24, 4)  # each example is told by its first number
TARGETS = torch.arange(24) % 3
TEST = [(INPUTS[:6], TARGETS[:6])]


def net():
    # Dropout draws from the generator that a DataLoader shuffles by.
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def batches_of(order):
    return [(INPUTS[chosen], TARGETS[chosen]) for chosen in torch.as_tensor(order).split(6)]


class Drawn:
    """Batches in an order that `draw` gives anew for each epoch."""

    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        return iter(batches_of(self.draw()))


def in_order():
    return batches_of(range(24)), TEST


def shuffled_by_torch():
    data = TensorDataset(INPUTS, TARGETS)
    return DataLoader(data, batch_size=6, shuffle=True), DataLoader(data, batch_size=6)


def shuffled_by_numpy():
    return Drawn(lambda: np.random.permutation(24)), TEST  # noqa: NPY002  what loaders draw from


def shuffled_by_python():
    return Drawn(lambda: random.sample(range(24), 24)), TEST


def shuffled_when_opened():
    return batches_of(torch.randperm(24)), TEST


SHUFFLED = [shuffled_by_torch, shuffled_by_numpy, shuffled_by_python, shuffled_when_opened]


def own(build=net, data=in_order, **settings):
    return experiment_of(build, data, Settings(**settings))


def named(network="mlp", data="digits", **settings):
    return experiment_of(network, data, Settings(**settings))


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


# Arrays


def assert_equal_common_arrays(subject, activation, seed):
    """Both sides have the same arrays, but for the batch norms and the biases they replace."""
    plain, twin = (subject.network(side, activation, seed).state_dict() for side in SIDES)
    common = plain.keys() & twin.keys()
    assert all(torch.equal(plain[name], twin[name]) for name in common)
    assert {name for name in plain if name.endswith("weight")} <= common
    assert all(name.endswith("bias") for name in plain.keys() - common)
    assert all(".batchnorm." in name for name in twin.keys() - common)


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("init", ["default", "glorot", "he", "normal:0.05"])
@pytest.mark.parametrize("data", [in_order, shuffled_by_torch])
def test_both_sides_of_an_own_network_begin_with_the_same_arrays(seed, init, data):
    assert_equal_common_arrays(own(data=data, init=init), AS_BUILT, seed)


@pytest.mark.parametrize("network", ["mlp", "dlology", "resnet", "logistic"])
def test_both_sides_of_a_named_network_begin_with_the_same_arrays(network, monkeypatch):
    if network == "dlology":  # it needs larger images than the digits
        monkeypatch.setattr("bnkit.experiments.data.load", lambda *_, **__: enlarged())
    assert_equal_common_arrays(named(network), "relu", 3)


def enlarged():
    digits = load("digits")
    big = [
        type(part)(part.inputs.repeat(1, 1, 3, 3), part.targets)
        for part in (digits.train, digits.test)
    ]
    return type(digits)("big digits", big[0], None, big[1], 10, "big")


@pytest.mark.parametrize("side", SIDES)
def test_one_seed_gives_one_network_and_another_seed_another(side):
    subject = own()
    drawn = [subject.network(side, AS_BUILT, seed)[0].weight for seed in (3, 4, 3)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_what_was_drawn_before_changes_nothing():
    subject = own()
    first = subject.network("plain", AS_BUILT, 3)[0].weight
    torch.rand(10)
    for batch in subject.loaders(5).train:
        del batch
    assert torch.equal(subject.network("plain", AS_BUILT, 3)[0].weight, first)


def test_a_seed_sets_the_generators_of_torch_python_and_numpy():
    drawn = []
    for _ in range(2):
        seed_everything(5)
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


# Batches


def trained_on(subject, side, seed):
    """Return the numbers of the examples in the order of three epochs of training."""
    model = subject.network(side, AS_BUILT, seed)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][:, 0].tolist()) if module.training else None
    )
    loaders = subject.loaders(seed)
    train(model, loaders.train, loaders.held_out, Training(0.01, steps=12, evaluate_every=3))
    return list(itertools.chain.from_iterable(seen))


@pytest.mark.parametrize("data", SHUFFLED)
def test_both_sides_see_the_same_batches_in_the_same_order(data):
    subject = own(data=data)
    plain, twin = (trained_on(subject, side, 1) for side in SIDES)
    assert plain == twin
    assert sorted(plain) == sorted(3 * INPUTS[:, 0].tolist())  # all examples, in each epoch
    assert plain != 3 * INPUTS[:, 0].tolist()
    assert trained_on(subject, "plain", 2) != plain


def noisy_without_end():
    def noisy():
        while True:
            for inputs, targets in batches_of(range(24)):
                yield inputs + torch.rand(1), targets

    return noisy(), TEST


def generator_states(subject, side, seed):
    """Return the state of torch's generator at each forward, which dropout draws from next."""
    model = subject.network(side, AS_BUILT, seed)
    states = []
    model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state().tolist()))
    loaders = subject.loaders(seed)
    train(model, loaders.train, loaders.held_out, Training(0.01, steps=12, evaluate_every=3))
    return states


@pytest.mark.parametrize("data", [*SHUFFLED, noisy_without_end])
def test_both_sides_drop_the_same_units(data):
    # Loaders, dropout and evaluations take turns in drawing from one generator.
    plain, twin = (generator_states(own(data=data), side, 1) for side in SIDES)
    assert plain == twin
    assert plain != generator_states(own(data=data), "plain", 2)


def test_a_dataloaders_epochs_differ_on_both_sides_alike():
    plain, twin = (trained_on(own(data=shuffled_by_torch), side, 0) for side in SIDES)
    assert plain == twin
    assert plain[:24] != plain[24:48]


def test_named_data_are_shuffled_by_seed_or_given_in_order():
    def first(subject, seed):
        return [y.tolist() for _, y in itertools.islice(subject.loaders(seed).train, 3)]

    shuffled, ordered = named(batch_size=5), named(batch_size=5, shuffle=False)
    assert first(shuffled, 1) == first(shuffled, 1) != first(shuffled, 2)
    in_order = [part.tolist() for part in load("digits").train.targets[:15].split(5)]
    assert first(ordered, 1) == first(ordered, 2) == in_order


def test_named_data_are_measured_whole():
    loaders = named().loaders(0)
    digits = load("digits")
    assert torch.equal(torch.cat([y for _, y in loaders.test]), digits.test.targets)
    assert torch.equal(torch.cat([x for x, _ in loaders.held_out]), digits.held_out.inputs)


def test_own_test_data_are_measured_along_the_way_too():
    loaders = own().loaders(0)
    assert loaders.held_out is loaders.test is TEST


def test_the_example_is_the_inputs_of_the_first_training_batch():
    assert torch.equal(own().example(), INPUTS[:6])


# What the settings decide


@pytest.mark.parametrize("network", ["mlp", "logistic", net])
def test_momentum_and_eps_arrive_in_the_twin(network):
    subject = experiment_of(
        network, "digits" if isinstance(network, str) else in_order, Settings(momentum=0.3, eps=0.1)
    )
    found = batch_norms(subject.network("batch norm", subject.activations[0], 0))
    assert found
    assert all((layer.momentum, layer.eps) == (0.3, 0.1) for layer in found)


def test_the_placement_arrives_in_the_twin():
    before = own().network("batch norm", AS_BUILT, 0)
    after = own(placement="after_activation").network("batch norm", AS_BUILT, 0)
    assert isinstance(before[0].batchnorm, nn.BatchNorm1d)
    assert isinstance(after[1].batchnorm, nn.BatchNorm1d)
    assert after[0].bias is not None
    assert not hasattr(after[0], "batchnorm")


def test_the_plain_side_has_no_batch_norm():
    assert not batch_norms(own().network("plain", AS_BUILT, 0))
    assert not batch_norms(named().network("plain", "relu", 0))


def test_the_initialisation_arrives_in_both_sides():
    for side in SIDES:
        assert own(init="normal:5").network(side, AS_BUILT, 0)[0].weight.std() > 2
        tiny = named(init="normal:1e-6").network(side, "relu", 0)
        assert tiny.get_submodule("1").weight.abs().max() < 1e-4
    assert not own(init="he").network("plain", AS_BUILT, 0)[0].bias.any()


def test_activations_and_hidden_layers_arrive_in_a_named_network():
    subject = named(activations=["tanh", "selu"], hidden=[7])
    assert subject.activations == ("tanh", "selu")
    for side in SIDES:
        model = subject.network(side, "tanh", 0)
        assert [type(m) for m in model if not isinstance(m, nn.Linear)] == [nn.Flatten, nn.Tanh]
        assert model[1].out_features == 7


def test_an_own_network_has_the_activation_that_it_was_built_with():
    assert own().activations == (AS_BUILT,)


def test_an_own_network_may_take_named_data():
    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    subject = experiment_of(build, "digits", Settings(batch_size=7))
    assert subject.example().shape == (7, 1, 8, 8)
    assert batch_norms(subject.network("batch norm", AS_BUILT, 0))


# What it says of itself


def test_names_are_described_as_typed_and_functions_by_their_module():
    assert named().description == {"network": "mlp", "data": "digits"}
    assert own().description == {
        "network": f"{__name__}:net",
        "data": f"{__name__}:in_order",
    }


def other_inputs():
    return [(inputs + 1, targets) for inputs, targets in batches_of(range(24))], TEST


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (own, lambda: own(momentum=0.2)),
        (own, lambda: own(eps=1e-3)),
        (own, lambda: own(placement="after_activation")),
        (own, lambda: own(data=other_inputs)),
        (named, lambda: named("logistic")),
        (named, lambda: named(batch_size=61)),
        (named, lambda: named(shuffle=False)),
    ],
)
def test_whatever_decides_the_numbers_is_in_the_identity(one, other):
    assert one().identity == one().identity
    assert one().identity != other().identity


# Errors


@pytest.mark.parametrize(
    ("build", "data", "text"),
    [
        (
            "mlp",
            in_order,
            (
                "`build` is the name 'mlp' and `data` is your own: a named network needs a named "
                "data set, so pass a function that builds yours"
            ),
        ),
        (
            "resnte",
            "digits",
            (
                "unknown network 'resnte': did you mean 'resnet'? Choose from dlology, logistic, "
                "mlp, resnet, udacity, vgg"
            ),
        ),
        (
            net,
            "digit",
            (
                "unknown data set 'digit': did you mean 'digits'? Choose from digits, "
                "fashion-mnist, mnist"
            ),
        ),
        (net, lambda: 1 / 0, "`data` (<lambda>) fails: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_a_subject_is_refused(build, data, text):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the whole text is compared
        experiment_of(build, data, SETTINGS)
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize(
    ("found", "kind"),
    [(None, "NoneType"), ([1], "list of 1"), (((), (), ()), "tuple of 3"), ({}, "dict")],
)
def test_data_must_return_a_pair(found, kind):
    with pytest.raises(TypeError) as raised:
        experiment_of(net, lambda: found, SETTINGS)
    assert str(raised.value) == (
        f"`data` returned a {kind}: it must return (train, test), two iterables of batches"
    )


def test_build_must_return_a_module():
    with pytest.raises(TypeError) as raised:
        own(build=lambda: "net").network("plain", AS_BUILT, 0)
    assert str(raised.value) == "`build` returned a str: it must return a torch module"


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: 1 / 0, "`build` (<lambda>) fails: ZeroDivisionError: division by zero"),
        (lambda: sys.exit(3), "`build` (<lambda>) fails: SystemExit: 3"),
    ],
)
def test_a_build_that_fails_is_named(build, text):
    with pytest.raises(ValueError, match="fails") as raised:
        own(build=build).network("plain", AS_BUILT, 0)
    assert str(raised.value).startswith(text)


def test_a_network_without_arrays_to_begin_with_is_refused():
    lazy = own(build=lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="lazy") as raised:
        lazy.network("plain", AS_BUILT, 0)
    assert str(raised.value) == (
        "`build` returned a network with lazy layers, which have no arrays to begin with: run one "
        "mini-batch through it in `build`"
    )


@pytest.mark.parametrize(
    ("build", "data", "text"),
    [
        (
            nn.ReLU(),  # it can be called, but is no function that builds
            in_order,
            (
                "`build` is a ReLU: pass the name of a network, or a function that builds yours "
                "at each call, as in `lambda: Net()`"
            ),
        ),
        (
            5,
            in_order,
            (
                "`build` is a int: pass the name of a network, or a function that builds yours "
                "at each call, as in `lambda: Net()`"
            ),
        ),
        (
            net,
            in_order(),
            (
                "`data` is a tuple: pass the name of a data set, or a function that returns "
                "(train, test), two iterables of batches"
            ),
        ),
    ],
)
def test_what_is_neither_a_name_nor_a_function_is_refused(build, data, text):
    with pytest.raises(TypeError) as raised:
        experiment_of(build, data, SETTINGS)
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize(
    ("build", "data", "setting", "text"),
    [
        (net, in_order, {"hidden": [5]}, "`hidden` is (5,), and `build`"),
        (net, "digits", {"activations": ["elu"]}, "`activations` is ('elu',), and `build`"),
        (net, in_order, {"batch_size": 8}, "`batch_size` is 8, and `data`"),
        (net, in_order, {"shuffle": False}, "`shuffle` is False, and `data`"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(build, data, setting, text):
    with pytest.raises(ValueError, match="is your own") as raised:
        experiment_of(build, data, Settings(**setting))
    assert str(raised.value) == f"{text} is your own, which decides that"


def test_the_settings_that_change_nothing_are_named():
    assert named().unused == []
    assert experiment_of(net, "digits", SETTINGS).unused == ["hidden", "activations"]
    assert own().unused == ["hidden", "activations", "batch_size", "shuffle"]
