import abc
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.surgery.normalized import (
    Layout,
    Normalized,
    NormalizedInput,
    NormalizedOutput,
    normalized_class,
    own_batch_norm,
    own_batch_norm_at,
)

RANKS = {nn.Conv1d: (3, BatchNorm1d), nn.Conv2d: (4, BatchNorm2d), nn.Conv3d: (5, BatchNorm3d)}


def owning(layer, features, *, axis=1, rank=4, place=NormalizedOutput, **options):
    layout = Layout("body.conv", features, axis, rank)
    own_batch_norm(layer, layout, place=place, **{"momentum": 0.1, "eps": 1e-5, **options})
    return layer


@pytest.mark.parametrize("kind", RANKS)
def test_a_layer_normalises_its_own_output(kind):
    rank, batch_norm = RANKS[kind]
    plain = kind(2, 3, 2)
    layer = owning(copy.deepcopy(plain), 3, rank=rank, eps=0.1, momentum=0.5)
    x = torch.randn(4, 2, *[5] * (rank - 2))
    expected = batch_norm(3, eps=0.1, momentum=0.5)
    torch.testing.assert_close(layer(x), expected(plain(x)))
    torch.testing.assert_close(layer.batchnorm.state_dict(), expected.state_dict())
    assert type(layer.batchnorm) is batch_norm
    assert isinstance(layer, kind)


def test_a_layer_normalises_its_input_before_it_pads():
    plain = nn.Conv2d(2, 3, 3, padding=1)
    layer = owning(copy.deepcopy(plain), 2, place=NormalizedInput)
    x = torch.randn(4, 2, 5, 5) + 7
    torch.testing.assert_close(layer(x), plain(nn.BatchNorm2d(2)(x)))
    torch.testing.assert_close(layer(input=x), layer(x))


def test_further_arguments_reach_the_layer():
    layer = owning(nn.ConvTranspose2d(2, 3, 2, stride=2), 3)
    assert layer(torch.randn(2, 2, 4, 4), output_size=(9, 9)).shape == (2, 3, 9, 9)
    layer = owning(nn.ConvTranspose2d(2, 3, 2, stride=2), 2, place=NormalizedInput)
    assert layer(torch.randn(2, 2, 4, 4), [9, 9]).shape == (2, 3, 9, 9)


@pytest.mark.parametrize("shape", [(6, 2), (4, 3, 2), (2, 2, 3, 2), (2, 2, 1, 3, 2)])
def test_dense_features_lie_on_the_last_axis_of_any_rank(shape):
    plain = nn.Linear(2, 5)
    layer = owning(copy.deepcopy(plain), 5, axis=-1, rank=None)
    x = torch.randn(shape)
    expected = nn.BatchNorm1d(5)(plain(x).flatten(0, -2)).reshape(*shape[:-1], 5)
    torch.testing.assert_close(layer(x), expected)


def test_dense_outputs_may_lie_in_memory_in_any_order():
    class Turned(nn.Linear):
        def forward(self, x):
            return super().forward(x).transpose(0, 1)

    x = torch.randn(3, 4, 2)
    layer = owning(Turned(2, 5), 5, axis=-1, rank=None)
    assert layer(x).shape == (4, 3, 5)


@pytest.mark.parametrize("rank", [None, 4], ids=["dense", "conv"])
def test_inputs_without_a_batch_axis_are_refused(rank):
    layer, x = (nn.Linear(2, 3), torch.randn(2)) if rank is None else (
        nn.Conv2d(2, 3, 1), torch.randn(2, 4, 4)
    )  # fmt: skip
    layer = owning(layer, 3, axis=1 if rank else -1, rank=rank)
    shape = r"\(3, 4, 4\)" if rank else r"\(3,\)"
    message = (
        rf"^layer 'body.conv' normalises over the mini-batch and needs a batch axis: it got a "
        rf"tensor of shape {shape}; add one with x.unsqueeze\(0\), or stack several examples$"
    )
    with pytest.raises(ValueError, match=message):
        layer(x)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_the_batch_norm_has_the_dtype_of_the_layer_or_of_what_is_given(dtype, expected):
    layer = owning(nn.Conv2d(2, 3, 1, dtype=dtype), 3)
    activation = owning(nn.ReLU(), 3, like=torch.empty(0, dtype=dtype))
    assert {layer.batchnorm.weight.dtype, activation.batchnorm.weight.dtype} == {expected}


def test_the_batch_norm_is_made_on_the_device_of_the_layer_or_of_what_is_given():
    layer = owning(nn.Conv2d(2, 3, 1, device="meta"), 3)
    activation = owning(nn.ReLU(), 3, like=torch.empty(0, device="meta"))
    assert layer.batchnorm.running_mean.is_meta
    assert activation.batchnorm.running_mean.is_meta


@pytest.mark.parametrize("training", [True, False])
def test_the_batch_norm_is_in_the_mode_of_the_layer_and_follows_it(training):
    layer = owning(nn.Conv2d(2, 3, 1).train(training), 3)
    assert layer.batchnorm.training is training
    assert layer.train(not training).batchnorm.training is not training


# Classes


class Counted(nn.Conv2d):
    """A user's own conv, with state of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.count = 0

    def forward(self, x):
        self.count += 1
        return super().forward(x)


class Abstract(nn.Conv2d, abc.ABC):
    """A conv with a metaclass."""


def test_there_is_one_class_for_each_place_and_original():
    made = normalized_class(NormalizedOutput, nn.Conv2d)
    assert made is normalized_class(NormalizedOutput, nn.Conv2d)
    assert made is not normalized_class(NormalizedInput, nn.Conv2d)
    assert made.__mro__[:2] == (made, NormalizedOutput)
    assert issubclass(made, nn.Conv2d)
    assert issubclass(made, Normalized)
    assert (made.__name__, made.__qualname__) == ("NormalizedConv2d", "NormalizedConv2d")


@pytest.mark.parametrize("kind", [nn.Conv2d, Counted, Abstract])
@pytest.mark.parametrize("place", [NormalizedOutput, NormalizedInput])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_layers_survive_copies_and_pickles(kind, place, protocol):
    layer = owning(kind(3, 3, 1), 3, place=place)
    layer(torch.randn(4, 3, 2, 2))
    layer.eval()
    x = torch.randn(4, 3, 2, 2)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer, protocol))):
        assert type(other) is type(layer)
        assert other.batchnorm is not layer.batchnorm
        assert vars(other).get("count", 1) == 1
        assert torch.equal(other(x), layer(x))


def test_a_shallow_copy_shares_what_a_shallow_copy_shares():
    layer = owning(nn.Conv2d(2, 3, 1), 3)
    other = copy.copy(layer)
    assert other.batchnorm is layer.batchnorm
    assert other.weight is layer.weight


def test_a_layer_may_be_parametrised_later():
    layer = owning(nn.Conv2d(2, 3, 1), 3)
    other = copy.deepcopy(parametrizations.spectral_norm(layer)).eval()
    x = torch.randn(4, 2, 2, 2)
    torch.testing.assert_close(other(x), layer.eval()(x))


def test_a_layer_prints_with_its_batch_norm():
    text = repr(owning(nn.Conv2d(2, 3, 1), 3))
    assert text.startswith("NormalizedConv2d(\n  2, 3, kernel_size=(1, 1)")
    assert "(batchnorm): BatchNorm2d(3," in text


# By the path of a layer


def body():
    return nn.ModuleDict({"conv": nn.Conv2d(2, 3, 1), "act": nn.ReLU()})


MAPS = {"features": 3, "axis": 1, "rank": 4, "momentum": 0.5, "eps": 0.1}


def test_plain_data_say_which_layer_of_a_model_owns_what():
    model, x = body(), torch.randn(4, 2, 5, 5)
    expected = nn.BatchNorm2d(3, momentum=0.5, eps=0.1)(model["conv"](x))
    own_batch_norm_at(model, "conv", side="output", **MAPS)
    torch.testing.assert_close(model["conv"](x), expected)
    assert model["conv"].bias is not None
    assert model["conv"].batchnorm_layout == Layout("conv", 3, 1, 4)


def test_a_bias_that_is_redundant_can_be_dropped():
    model, x = body(), torch.randn(4, 2, 5, 5)
    expected = nn.BatchNorm2d(3, momentum=0.5, eps=0.1)(model["conv"](x))
    own_batch_norm_at(model, "conv", side="output", **MAPS, drop_bias=True)
    torch.testing.assert_close(model["conv"](x), expected)
    assert model["conv"].bias is None


def test_the_side_is_that_of_the_input_or_the_output():
    model, x = body(), torch.randn(4, 2, 5, 5)
    expected = model["conv"](nn.BatchNorm2d(2, momentum=0.5, eps=0.1)(x))
    own_batch_norm_at(model, "conv", side="input", **{**MAPS, "features": 2})
    torch.testing.assert_close(model["conv"](x), expected)


def test_an_activation_has_its_batch_norm_like_another_layer():
    model = body().double()
    own_batch_norm_at(model, "act", side="output", **MAPS, like="conv")
    assert model["act"].batchnorm.running_mean.dtype is torch.float64


def test_a_layer_owns_one_batch_norm_only():
    model = body()
    own_batch_norm_at(model, "conv", side="output", **MAPS)
    message = r"^layer 'conv' \(NormalizedConv2d\) has a `batchnorm` already$"
    with pytest.raises(ValueError, match=message):
        own_batch_norm_at(model, "conv", side="input", **MAPS)
