import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import SurgeryError
from bnkit.experiments.networks import dlology, logistic
from bnkit.experiments.twins import add_to_inputs, add_to_logits_too

OPTIONS = {"placement": "before_activation", "momentum": 0.3, "eps": 0.1}


def seeded(make, shape):
    torch.manual_seed(0)
    return make(shape, 10, activation="relu"), torch.randn(5, *shape)


def dense_and_conv(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def by_batch_statistics(x, eps):
    """Batch normalization of (N, C) in float64, by its definition."""
    x = x.double()
    return (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()


TWINS = [(add_to_logits_too, dlology, (1, 28, 28)), (add_to_inputs, logistic, (1, 8, 8))]
each = pytest.mark.parametrize(("add", "make", "shape"), TWINS, ids=["dlology", "logistic"])


@each
def test_a_twin_shares_every_weight_and_no_memory_with_the_plain_network(add, make, shape):
    plain, example = seeded(make, shape)
    before = copy.deepcopy(plain.state_dict())
    twin = add(plain, example, **OPTIONS)
    arrays = twin.state_dict()
    for name, array in plain.state_dict().items():
        assert torch.equal(array, before[name])
        if name.endswith("weight"):
            assert torch.equal(array, arrays[name])
            assert array.data_ptr() != arrays[name].data_ptr()
    assert not batch_norms(plain)


@each
def test_momentum_and_eps_arrive_in_every_batch_norm(add, make, shape):
    found = batch_norms(add(*seeded(make, shape), **OPTIONS))
    assert {(layer.momentum, layer.eps) for layer in found} == {(0.3, 0.1)}


@each
def test_a_twin_trains_and_evaluates(add, make, shape):
    plain, example = seeded(make, shape)
    twin = add(plain, example, **OPTIONS)
    F.cross_entropy(twin(example), torch.arange(5)).backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert twin.eval()(example).shape == (5, 10)


def test_every_layer_of_dlology_is_normalised_and_has_lost_its_bias():
    plain, example = seeded(dlology, (1, 28, 28))
    twin = add_to_logits_too(plain, example, **OPTIONS)
    layers = dense_and_conv(twin)
    assert len(layers) == len(batch_norms(twin)) == 5
    assert all(layer.bias is None for layer in layers)
    assert [layer.batchnorm.num_features for layer in layers] == [32, 64, 64, 64, 10]


def test_the_outputs_of_dlologys_twin_are_normalised_logits():
    twin = add_to_logits_too(*seeded(dlology, (1, 28, 28)), **OPTIONS)
    example = torch.randn(6, 1, 28, 28)
    features = []
    twin[-1].register_forward_pre_hook(lambda _, args: features.append(args[0]))
    outputs = twin(example)
    logits = features[0].double() @ twin[-1].weight.double().T
    wanted = by_batch_statistics(logits, eps=0.1)
    torch.testing.assert_close(outputs.double(), wanted, rtol=1e-4, atol=1e-5)


def test_dlologys_twin_has_no_place_after_the_activation():
    plain, example = seeded(dlology, (1, 28, 28))
    with pytest.raises(SurgeryError) as raised:
        add_to_logits_too(plain, example, placement="after_activation", momentum=0.1, eps=1e-5)
    assert str(raised.value) == (
        "`placement` is 'after_activation', and this network also normalises its outputs, which "
        "no activation follows: use before_activation"
    )


@pytest.mark.parametrize("placement", ["before_activation", "after_activation"])
def test_the_twin_of_softmax_regression_normalises_its_pixels(placement):
    plain, example = seeded(logistic, (1, 8, 8))
    twin = add_to_inputs(plain, example, placement=placement, momentum=0.3, eps=0.1)
    (layer,), (batch_norm,) = dense_and_conv(twin), batch_norms(twin)
    assert batch_norm.num_features == 64
    assert torch.equal(layer.bias, dense_and_conv(plain)[0].bias)
    pixels = by_batch_statistics(example.flatten(1), eps=0.1)
    wanted = pixels @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(twin(example).double(), wanted, rtol=1e-4, atol=1e-5)
