import pytest
import torch
from torch import nn

from bnkit.layers import BatchNorm1d
from bnkit.layers.affine import ResidualActivation
from bnkit.surgery import add
from bnkit.surgery.folding import fold_away
from bnkit.surgery.folding.folding import folded, give_class_back
from surgery.folding.states import randomised


def test_a_batch_norm_is_folded_in_place_channel_by_channel():
    # Feature 0 of the layer is channel 1, feature 1 is none, feature 2 is channel 0.
    model = randomised(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(2)))
    layer, x = model[0], torch.randn(5, 4)
    made, norm = layer(x), model[1]
    channels = norm(made[:, [2, 0]])
    expected = torch.stack([channels[:, 1], made[:, 1], channels[:, 0]], 1)
    features = torch.tensor([1, -1, 0])
    fold_away(model, "1", target="0", side="before", values={"features": features})
    assert model[0] is layer
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["before", "after"])
def test_values_are_computed_in_float64_and_come_in_the_dtype_of_the_layer(side):
    norm, layer = randomised(nn.BatchNorm1d(3)), nn.Linear(3, 3).half()
    weight, bias = folded(norm, layer, side=side, features=torch.arange(3))
    wide = folded(norm.double(), layer.double(), side="before", features=torch.arange(3))
    assert (weight.dtype, bias.dtype) == (torch.float16, torch.float16)
    if side == "before":
        assert torch.equal(weight, wide[0].half())
        assert torch.equal(bias, wide[1].half())


def test_every_place_of_a_batch_norm_is_emptied():
    norm = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"fc": nn.Linear(4, 3), "a": norm, "b": norm})
    fold_away(model, "a", target="fc")
    assert isinstance(model["b"], nn.Identity)


def test_what_remains_is_in_the_mode_of_the_batch_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3).eval())
    fold_away(model, "1", target="0")
    assert not model[1].training


def test_an_activation_of_a_foreign_class_is_none_of_ours():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].activation = "relu"  # an attribute that torch's forward does not know
    fold_away(model, "1", target="0")
    assert isinstance(model[1], nn.Identity)


def test_a_residual_leaves_its_sum_and_activation():
    model = nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3, activation="tanh"))
    fold_away(model, "1", target="0", residual=True)
    assert isinstance(model[1], ResidualActivation)
    assert model[1].activation == "tanh"


def test_a_layer_without_its_batch_norm_is_what_it_was():
    layer = nn.Linear(4, 3, bias=False)
    state, attributes = layer.state_dict(), set(vars(layer))
    twin = add(nn.Sequential(layer, nn.ReLU()), torch.randn(5, 4))
    give_class_back(twin[0])
    assert type(twin[0]) is nn.Linear
    assert set(vars(twin[0])) == attributes
    assert list(twin[0].state_dict()) == list(state)
