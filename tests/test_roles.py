import pkgutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.dataflow import trace
from bnkit.roles import (
    Role,
    can_own_batch_norm,
    gives_answers,
    is_batch_norm,
    is_leaf,
    role_of_function,
    role_of_module,
)
from bnkit.surgery.segment import role_of
from zoo.normalised import BatchNormAct, ConvWithNorm, FrozenBatchNorm2d

ACTIVATIONS = [name for name in nn.modules.activation.__all__ if name != "MultiheadAttention"]
# The spellings of nn.X as a function, where that is not x in snake case.
SPELLED = {
    "LeakyReLU": "leaky_relu",
    "LogSigmoid": "logsigmoid",
    "LogSoftmax": "log_softmax",
    "Softmax2d": "softmax",
}
ARGUMENTS = {  # of those functions that need some
    "threshold": (0.1, 0.0),
    "prelu": (torch.tensor([0.25]),),
    **dict.fromkeys(["softmax", "softmin", "log_softmax"], (1,)),
}


class Calling(nn.Module):
    """Calls the function on its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def role_when_run(function, x=None):
    """Return the role of the one call that matters when the function runs: the last."""
    x = torch.randn(2, 4, 6, 6) if x is None else x
    return role_of(trace(Calling(function), x).calls[-1])


def spellings(name):
    """Yield every callable of torch that is the activation called `name`."""
    stem = SPELLED.get(name, name.lower())
    for home in (F, torch, torch.Tensor, torch.special):
        for ending in ("", "_"):
            if hasattr(home, stem + ending):
                where = f"{home.__name__}.{stem}{ending}"
                yield where, getattr(home, stem + ending), ARGUMENTS.get(stem, ())


FUNCTIONS = [
    pytest.param(function, arguments, id=f"{name} {where}")
    for name in ACTIVATIONS
    for where, function, arguments in spellings(name)
]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_torch_has_a_functional_form_here(name):
    assert list(spellings(name))


@pytest.mark.filterwarnings("ignore:nn.functional:DeprecationWarning")  # F.tanh, F.sigmoid
@pytest.mark.parametrize(("function", "arguments"), FUNCTIONS)
def test_every_form_of_an_activation_is_one_when_it_runs(function, arguments):
    assert role_when_run(lambda x: function(x, *arguments)) is Role.ACTIVATION


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_modules_of_activations_are_activations(name):
    kind = getattr(nn, name)
    module = kind(0.1, 0.0) if name == "Threshold" else kind()
    assert role_of_module(module) is Role.ACTIVATION
    assert is_leaf(module)


CLAMPS = {
    "clamp, position": lambda x: x.clamp(0),
    "clamp, keyword": lambda x: torch.clamp(x, min=0.0),
    "clamp, only keywords": lambda x: torch.clamp(min=0, input=x),
    "clamp, both ends": lambda x: x.clamp(0, 6),
    "clamp, no upper end": lambda x: x.clamp(min=0, max=None),
    "clamp, in place": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min, in place": lambda x: torch.clamp_min_(x, 0),
    "clip": lambda x: torch.clip(x, 0.0),
    "clip, in place": lambda x: x.clip_(min=0),
    "out": lambda x: torch.clamp(x, min=0, out=torch.empty_like(x)),
    "the operator library": torch.ops.aten.relu.default,
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
}


@pytest.mark.parametrize("function", CLAMPS.values(), ids=CLAMPS)
def test_clamping_at_zero_is_an_activation_in_every_spelling(function):
    assert role_when_run(function) is Role.ACTIVATION


@pytest.mark.parametrize(
    "function",
    [lambda x: x.clamp(-1, 1), lambda x: x.clamp(max=0), lambda x: x.clamp(min=x)],
    ids=["both ends", "above", "by a tensor"],
)
def test_clamping_elsewhere_is_no_activation(function):
    assert role_when_run(function) is Role.OTHER


def write(x):
    y = torch.zeros(2, 4, 6, 6)
    y[:, 1:] = x[:, 1:]
    return y


PASSAGES = {
    "sum": lambda x: x + x,
    "sum with a number": lambda x: 1 + x,
    "sum in place": lambda x: x.add_(1),
    "difference": lambda x: 1 - x,
    "sign": lambda x: -x,
    "scaling": lambda x: x * 0.5,
    "scaling by keyword": lambda x: torch.mul(x, other=2),
    "scaling by numpy": lambda x: x / np.sqrt(2),
    "scaling in place": lambda x: x.mul_(3),
    "write": write,
    "slice": lambda x: x[:, 1:],
    "loop": lambda x: next(iter(x)),
    "chunks": lambda x: x.chunk(2, 1),
    "concatenation": lambda x: torch.cat([x, x], 1),
    "stack": lambda x: torch.stack([x, x]),
    "view": lambda x: x.view(2, -1),
    "attribute": lambda x: x.mT,
    "permutation": lambda x: x.permute(0, 2, 3, 1),
    "flatten": lambda x: torch.flatten(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "maximum": lambda x: x.max(1),
    "max pooling": lambda x: F.max_pool2d(x, 2),
    "max pooling with places": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True),
    "fractional pooling": lambda x: F.fractional_max_pool2d(x, 2, output_size=2),
    "norm pooling": lambda x: F.lp_pool2d(x, 2.0, 2),
    "dropout": lambda x: F.dropout2d(x, training=True),
    "padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "interpolation": lambda x: F.interpolate(x, scale_factor=2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "patches": lambda x: F.unfold(x, 2),
    "dtype": lambda x: x.double(),
    "mask": lambda x: x.masked_fill(x.new_ones(x.shape).bool(), 0),
    "choice": lambda x: torch.where(torch.ones(6).bool(), x, 0.0),
    "scatter": lambda x: torch.zeros(2, 4, 6, 6).index_add_(0, torch.tensor([1, 0]), x),
}


@pytest.mark.parametrize("function", PASSAGES.values(), ids=PASSAGES)
def test_what_hands_values_on_is_a_passage_when_it_runs(function):
    assert role_when_run(function) is Role.PASSTHROUGH


OTHERS = {
    "product of two values": lambda x: x * x.mean(),
    "product with a tensor made on the way": lambda x: torch.tensor(2.0) * x,
    "division by a value": lambda x: x / x.sum(),
    "number divided": lambda x: 2 / x,
    "matrix product": lambda x: x @ x,
    "power": lambda x: x**2,
    "comparison": lambda x: x > 0,
    "index of the largest": lambda x: x.argmax(1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_what_makes_other_values_is_no_passage(function):
    assert role_when_run(function) is Role.OTHER


def test_a_product_with_a_parameter_scales_and_one_with_a_value_gates():
    assert role_of_function("mul", (7, "block.gamma"), {}) is Role.PASSTHROUGH
    assert role_of_function("mul_", (7,), {"other": 2.0}) is Role.PASSTHROUGH
    value = type("Value", (int,), {})(8)  # as in a Call: it stands for a tensor
    assert role_of_function("mul", (value, value), {}) is Role.OTHER


WEIGHTS = {
    "linear": lambda x: F.linear(x, torch.ones(3, 6)),
    "conv": lambda x: torch.conv2d(x, torch.ones(3, 4, 1, 1)),
    "transposed conv": lambda x: F.conv_transpose2d(x, torch.ones(4, 3, 1, 1)),
}
NORMALISATIONS = {
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "bnkit's": lambda x: bnkit.functional.batch_norm(x, None, None, training=True),
    "instance norm": F.instance_norm,
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "group norm": lambda x: F.group_norm(x, 2),
    "rms norm": lambda x: F.rms_norm(x, (6,)),
    "to length one": F.normalize,
}


@pytest.mark.parametrize("function", WEIGHTS.values(), ids=WEIGHTS)
def test_dense_and_conv_functions_are_weights_when_they_run(function):
    assert role_when_run(function) is Role.WEIGHTS


@pytest.mark.parametrize("function", NORMALISATIONS.values(), ids=NORMALISATIONS)
def test_normalising_functions_are_normalisations_when_they_run(function):
    assert role_when_run(function) is Role.NORMALISATION


# Modules

FILES = {
    Role.PASSTHROUGH: "pooling dropout flatten padding upsampling pixelshuffle channelshuffle fold",
    Role.NORMALISATION: "batchnorm instancenorm normalization",
    Role.WEIGHTS: "conv rnn sparse",
    Role.OTHER: "loss distance",
}


def blank(kind):
    return object.__new__(kind)  # what part it plays does not depend on its state


CLASSES = [
    pytest.param(kind, role, id=kind.__name__)
    for role, files in FILES.items()
    for file in files.split()
    for kind in vars(getattr(nn.modules, file)).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.endswith(file)
    and not kind.__name__.startswith(("_", "Lazy"))
]  # fmt: skip


@pytest.mark.parametrize(("kind", "role"), CLASSES)
def test_every_layer_of_torch_has_its_role_and_is_one_step(kind, role):
    assert role_of_module(blank(kind)) is role
    assert is_leaf(blank(kind))


def test_no_file_of_torch_is_forgotten():
    known = set(" ".join(FILES.values()).split()) | {"activation", "linear"}
    files = {file.name for file in pkgutil.iter_modules(nn.modules.__path__)}
    # Containers of layers, helpers, and heads that are their own loss.
    rest = {"container", "lazy", "module", "transformer", "utils", "_functions", "adaptive"}
    assert {file for file in files - known - rest if not file.startswith("linear_")} == set()


class Gain(nn.Module):
    """An ordinary module of a user's."""


class FilterResponseNorm(nn.Module):
    """A normalisation that torch does not have."""


class BatchNormBase(nn.Module):
    """Another library's."""


class Short(BatchNormBase):
    """A batch norm by its base alone."""


class Squeeze(BatchNormBase):
    """A block around a batch norm, with the same base."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm


class ConvBatchNorm(nn.Conv2d):
    """A conv layer that normalises its output in its forward."""


class Normalized(nn.Sequential):
    """A block with a name that sounds like a normalisation."""


@pytest.mark.parametrize(
    ("module", "role", "leaf"),
    [
        (nn.Linear(1, 1), Role.WEIGHTS, True),
        (nn.Bilinear(1, 1, 1), Role.WEIGHTS, True),
        (nn.Identity(), Role.PASSTHROUGH, True),
        (nn.MultiheadAttention(2, 1), Role.WEIGHTS, False),
        (nn.Sequential(), Role.OTHER, False),
        (nn.TransformerEncoderLayer(2, 1, 2), Role.OTHER, False),
        (Gain(), Role.OTHER, False),
        (ConvWithNorm(1, 1, 1, norm=nn.BatchNorm2d(1)), Role.WEIGHTS, True),
        (BatchNormAct(1), Role.NORMALISATION, True),
        (FrozenBatchNorm2d(1), Role.NORMALISATION, True),
        (FilterResponseNorm(), Role.NORMALISATION, True),
        (Short(), Role.NORMALISATION, True),
        (ConvBatchNorm(1, 1, 1), Role.WEIGHTS, True),
        (Normalized(nn.ReLU()), Role.OTHER, False),
        (bnkit.BatchNorm2d(1, activation="relu"), Role.OTHER, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_special_modules(module, role, leaf):
    assert (role_of_module(module), is_leaf(module)) == (role, leaf)


def test_dense_and_conv_layers_and_their_subclasses_can_own_a_batch_norm():
    able = (
        nn.Linear(1, 1),
        nn.ConvTranspose3d(1, 1, 1),
        ConvWithNorm(1, 1, 1),
        nn.LazyConv1d(1, 1),
    )
    unable = (nn.Bilinear(1, 1, 1), nn.LSTM(1, 1), nn.Embedding(1, 1), nn.ReLU(), None)
    assert all(map(can_own_batch_norm, able))
    assert not any(map(can_own_batch_norm, unable))


class Squash(nn.Sigmoid):
    """A sigmoid under another name."""


ANSWERS = [nn.Sigmoid(), nn.Tanh(), nn.Softmax(1), nn.Softmax2d(), nn.LogSoftmax(1), Squash()]
ANSWERS += ["sigmoid", "sigmoid_", "special_expit", "tanh", "softmax", "log_softmax"]
NO_ANSWERS = [nn.ReLU(), nn.Softplus(), nn.Hardtanh(), nn.Tanhshrink(), "relu", "softsign", "elu"]


@pytest.mark.parametrize("activation", ANSWERS, ids=str)
def test_sigmoid_tanh_and_softmax_give_answers(activation):
    assert gives_answers(activation)


@pytest.mark.parametrize("activation", NO_ANSWERS, ids=str)
def test_other_activations_give_none(activation):
    assert not gives_answers(activation)


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        (nn.BatchNorm3d(1), True),
        (bnkit.BatchNorm1d(1), True),
        (BatchNormAct(1), True),
        (FrozenBatchNorm2d(1), True),
        (Short(), True),
        (Squeeze(BatchNormAct(1)), False),
        (ConvBatchNorm(1, 1, 1), False),
        ("native_batch_norm", True),
        (nn.GroupNorm(1, 1), False),
        (nn.InstanceNorm1d(1), False),
        ("normalize", False),
    ],
    ids=str,
)
def test_batch_norms_are_told_from_other_normalisations(normalisation, expected):
    assert is_batch_norm(normalisation) is expected
