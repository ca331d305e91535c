import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bnkit.dataflow import trace
from bnkit.parameters import shared_parameters
from bnkit.surgery import add
from bnkit.surgery.folding import plan_folding
from bnkit.surgery.folding.matching import objection_to_layer, original_class


def objection(layer, x):
    flow = trace(nn.Sequential(layer), x)
    return objection_to_layer(flow, flow.calls_of("0")[0], {}, "before")


class Named(nn.Conv2d):
    """A subclass that computes what its base does."""


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.abs().max(), bias)


def set_on_the_instance():
    layer = nn.Linear(4, 3)
    layer.forward = layer.forward
    return layer


def hooked():
    layer = nn.Linear(4, 3)
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def pruned(name):
    return prune.random_unstructured(nn.Linear(4, 3), name, 0.5)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 3, 1), Named(4, 3, 1)], ids=str)
def test_layers_that_compute_what_torchs_do_are_taken(layer):
    assert objection(layer, torch.randn(2, 4, 3, 3)) is None


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (set_on_the_instance(), "its forward is set on the instance"),
        (hooked(), "hooks are registered on it"),
        (pruned("weight"), "its weight or bias is computed (weight norm, spectral norm, pruning"),
        (pruned("bias"), "its weight or bias is computed (weight norm, spectral norm, pruning"),
        (
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
            "its weight or bias is computed",
        ),
    ],
    ids=str,
)
def test_dense_layers_that_compute_otherwise_stay(layer, why):
    assert f"'0' ({type(layer).__name__}) stays as it is: {why}" in objection(
        layer, torch.randn(2, 4)
    )


class PadsByItself(nn.Conv2d):
    """As convs that were ported from TensorFlow pad: in their own forward."""

    def forward(self, x):
        padded = nn.functional.pad(x, (0, 1, 0, 1))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride)


@pytest.mark.parametrize("bias", [True, False])
def test_a_conv_whose_own_forward_is_linear_in_weight_and_bias_is_taken(bias):
    layer = PadsByItself(4, 3, 2, stride=2, bias=bias)
    assert objection(layer, torch.randn(2, 4, 5, 5)) is None
    flow = trace(nn.Sequential(layer), torch.randn(2, 4, 5, 5))
    why = objection_to_layer(flow, flow.calls_of("0")[0], {}, "after")
    assert why.endswith("its class has a forward of its own")  # what it pads with is unknown
    model = nn.Sequential(layer, nn.BatchNorm2d(3)).eval()
    assert plan_folding(model, torch.randn(2, 4, 5, 5)).proof.error_in_float64 < 1e-14


def test_a_conv_with_a_weight_of_its_own_making_stays():
    why = objection(Standardised(4, 3, 1), torch.randn(2, 4, 3, 3))
    assert why.endswith("its class has a forward of its own")


def test_complex_weights_stay():
    why = objection(nn.Linear(4, 3, dtype=torch.complex64), torch.randn(2, 4) + 0j)
    assert why.endswith("its weight is torch.complex64")


def test_layers_that_hold_one_parameter_name_each_other():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].bias = model[0].bias
    assert shared_parameters(model) == {"0": "2", "2": "0"}


def test_one_layer_under_two_names_shares_nothing():
    layer = nn.Linear(3, 3)
    assert shared_parameters(nn.Sequential(layer, layer)) == {}


def test_the_class_before_a_batch_norm_was_owned_is_known():
    twin = add(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    assert original_class(twin[0]) is nn.Linear
    assert original_class(twin[1]) is nn.ReLU
