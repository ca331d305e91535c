"""Every kind of layer that can own a batch norm, and layers that are more than they seem."""

import copy
import functools
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from zoo.catalogue import Net, awkward, conv, dense, images, vectors

KINDS = {
    "dense, 2 axes": (lambda: nn.Linear(4, 6), (5, 4)),
    "dense, 3 axes": (lambda: nn.Linear(4, 6), (5, 3, 4)),
    "dense, 4 axes": (lambda: nn.Linear(4, 6, bias=False), (2, 3, 2, 4)),
    "conv 1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 7)),
    "conv 2d": (lambda: nn.Conv2d(4, 6, 3), (3, 4, 7, 5)),
    "conv 3d": (lambda: nn.Conv3d(4, 6, 2), (3, 4, 3, 4, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (3, 4, 7)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 3, 5)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (2, 4, 3, 2, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 5)),
    "grouped and transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (3, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (3, 4, 7, 5)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), (3, 4, 7, 6)),
    "circular padding": (lambda: conv(4, 6, padding_mode="circular"), (3, 4, 5, 5)),
    "one output": (lambda: nn.Conv2d(4, 1, 1), (3, 4, 5, 5)),
    "same padding": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2), (3, 4, 7)),
}


class Followed(nn.Module):
    """A layer, an activation, and an output layer of the same kind."""

    def __init__(self, layer, head):
        super().__init__()
        self.layer, self.act, self.head = layer, nn.ReLU(), head

    def forward(self, x):
        return self.head(self.act(self.layer(x)))


def followed(kind):
    make, shape = KINDS[kind]
    layer = make()
    if isinstance(layer, nn.Linear):
        return Followed(layer, nn.Linear(layer.out_features, 2))
    head = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    return Followed(layer, head(layer.out_channels, 2, 1))


def batch(kind):
    return torch.randn(KINDS[kind][1], generator=torch.Generator().manual_seed(0))


for _kind in KINDS:
    awkward(
        f"kinds of layers: {_kind}",
        example=functools.partial(batch, _kind),
        before="layer",
        after="act",
        alone={"head": "output layer"},
    )(functools.partial(followed, _kind))


class Standardized(nn.Conv2d):
    """A conv with its weight standardised in a forward of its own."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(), self.bias)


class Scaled(nn.Conv2d):
    """A conv with a child, and arguments of its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Conv2d(1, 1, 1)

    def forward(self, x, scale=1.0, *, shift):
        return super().forward(x) * scale * self.gain.weight + shift


class Rectified(nn.Linear):
    """A dense layer with its activation inside: the bias is not redundant."""

    def forward(self, x):
        return super().forward(x).relu()


@awkward(
    "layers whose classes have a forward of their own: biases are kept there",
    before="standardized scaled rectified",
    after="scaled scaled_act head",
    alone={"head": "output layer"},
)
class OwnForwards(Net):
    def parts(self):
        return {
            "standardized": Standardized(4, 4, 3),
            "scaled": Scaled(4, 4, 3),
            "scaled_act": nn.GELU(),
            "rectified": Rectified(4, 4),
            "head": dense(4, 3),
        }

    def forward(self, x):
        x = self.standardized(x).relu()
        x = self.scaled_act(self.scaled(x, 0.5, shift=0.1))
        return self.head(torch.tanh(self.rectified(x.mean((2, 3)))) * 2)


class Paired(nn.Linear):
    """A dense layer that returns a tuple, as the model-parallel ones do."""

    def forward(self, x):
        return super().forward(x), None


class Remade(nn.Linear):
    """A dense layer whose deepcopy makes a new one."""

    def __deepcopy__(self, memo):
        new = Remade(self.in_features, self.out_features).to(self.weight.dtype)
        new.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        return new


@awkward(
    "layers that cannot change their class, or return something other than one tensor",
    example=vectors,
    before="plain",
    after="head",
    alone={"paired": "returns a tuple", "remade": "copied", "patched": "set on the instance"},
)
class Unusual(Net):
    def parts(self):
        return {
            "paired": Paired(4, 4),
            "remade": Remade(4, 4),
            "patched": dense(),
            "plain": dense(),
            "head": dense(),
        }

    def __init__(self):
        super().__init__()
        self.patched.forward = self.patched.forward  # as libraries do that move layers about

    def forward(self, x):
        x, _ = self.paired(x)
        x = self.patched(self.remade(x.relu()).relu()).relu()
        return self.head(F.relu6(self.plain(x)))


def old_style(norm, layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch wants the new style
        return norm(layer)


@awkward(
    "layers whose weights are computed before each forward, by hooks or by parametrizations",
    before="plain",
    after="act",
    alone=dict.fromkeys("abcde", "its weight or bias is computed"),
    pickles=False,  # torch says no to parametrizations
)
class Computed(Net):
    def parts(self):
        return {
            "a": old_style(nn.utils.weight_norm, conv()),
            "b": old_style(nn.utils.spectral_norm, conv()),
            "c": parametrizations.weight_norm(conv()),
            "d": parametrizations.spectral_norm(conv()),
            "e": prune.random_unstructured(conv(), "weight", 0.3),
            "plain": conv(),
            "act": nn.ReLU(),
            "head": conv(),
        }

    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d, self.e):
            x = layer(x).relu()
        return self.head(self.act(self.plain(x)))


@awkward(
    "lazy layers that have seen an input are ordinary layers",
    before="0",
    after="1",
    alone={"3": "output layer"},
)
def once_lazy():
    model = nn.Sequential(nn.LazyConv2d(5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(images())
    return model


@awkward(
    "complex numbers have no batch norm",
    example=lambda: vectors().to(torch.complex64),
    alone={"a": "its weight is torch.complex64"},
)
class ComplexNumbers(Net):
    def parts(self):
        return {"a": dense(dtype=torch.complex64), "head": dense(dtype=torch.complex64)}

    def forward(self, x):
        return self.head(torch.tanh(self.a(x)))


@awkward(
    "some parameters are frozen, some modules in eval mode, one has a gradient",
    example=vectors,
    before="0 2",
    after="1 3",
    alone={"4": "output layer"},
)
def half_frozen():
    model = nn.Sequential(dense(), nn.ReLU(), dense(), nn.ReLU(), dense())
    model[0].requires_grad_(False)
    model[2].eval()
    model[4].weight.grad = torch.ones(4, 4)
    return model
