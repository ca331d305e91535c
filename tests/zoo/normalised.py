"""Models that are normalised already, each in another way."""

import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.surgery import add
from zoo.catalogue import Net, awkward, conv, dense, sequences, vectors

FOLLOWS = "already normalised"


@awkward(
    "torch's batch norms; the last block has none",
    before="6",
    after="7",
    alone={"0": FOLLOWS, "3": FOLLOWS, "8": "output layer"},
)
def half_normalised():
    return nn.Sequential(
        conv(bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        conv(),
        bnkit.BatchNorm2d(4, activation="relu"),
        nn.Identity(),
        conv(),
        nn.ReLU(),
        conv(),
    )


@awkward(
    "batch norm stands after the activation",
    before="4",
    after="5",
    alone={"0": FOLLOWS, "6": "output layer"},
)
def normalised_after():
    return nn.Sequential(
        conv(), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), conv(), nn.ReLU(), conv()
    )


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with its activation inside."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class FrozenBatchNorm2d(nn.Module):
    """A batch norm of another library, in buffers."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("scale", torch.rand(features) + 0.5)
        self.register_buffer("shift", torch.randn(features))

    def forward(self, x):
        return x * self.scale.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1)


class ConvWithNorm(nn.Conv2d):
    """A conv that is given its normalisation."""

    def __init__(self, *args, norm=None, **options):
        super().__init__(*args, **options)
        self.norm = norm

    def forward(self, x):
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


@awkward(
    "normalisations of other libraries, inside activations and convs",
    before="d",
    after="head",
    alone={"a": FOLLOWS, "b": FOLLOWS, "c": "by a layer inside it", "head": "output layer"},
)
class Foreign(Net):
    def parts(self):
        return {
            "a": conv(),
            "a_norm": BatchNormAct(4),
            "b": conv(),
            "b_norm": FrozenBatchNorm2d(4),
            "c": ConvWithNorm(4, 4, 3, padding=1, norm=FrozenBatchNorm2d(4)),
            "d": ConvWithNorm(4, 4, 3, padding=1),
            "head": conv(),
        }

    def forward(self, x):
        x = self.a_norm(self.a(x))
        x = self.b_norm(self.b(x)).relu()
        return self.head(self.d(self.c(x).relu()).relu())


@awkward(
    "functional normalisation, with statistics in buffers of the model",
    before="b",
    after="act",
    alone={"a": "batch_norm()", "c": "layer_norm()"},
)
class Functional(Net):
    def parts(self):
        return {"a": conv(), "b": conv(), "c": conv(), "act": nn.ReLU(), "head": conv()}

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x):
        x = F.batch_norm(self.a(x), self.mean, self.variance, training=self.training).relu()
        x = self.act(self.b(x))
        return self.head(F.layer_norm(self.c(x), x.shape[1:]).relu())


@awkward(
    "other kinds of normalisation; scaling to length one and across maps are none",
    before="3",
    after="4",
    alone={"0": FOLLOWS, "6": "LocalResponseNorm", "8": FOLLOWS},
)
def other_kinds():
    return nn.Sequential(
        conv(),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        nn.LocalResponseNorm(2),
        conv(),
        nn.LocalResponseNorm(2),
        conv(),
        nn.InstanceNorm2d(4),
        nn.Sigmoid(),
    )


@awkward(
    "a twin of bnkit.add's, before the activation",
    example=vectors,
    before="2",
    after="3",
    alone={"0": "batchnorm", "4": "output layer"},
)
def twin_before():
    model = nn.Sequential(dense(), nn.ReLU(), dense(), nn.ReLU(), dense())
    return add(model, vectors(), where=lambda path, _: path == "0")


class TwoStyles(Net):
    """One activation is a module, the others are functions."""

    def parts(self):
        return {name: dense() for name in ("a", "b", "c", "d", "head")} | {"act": nn.ReLU()}

    def forward(self, x):
        x = self.act(self.a(x))
        for layer in (self.b, self.c, self.d):
            x = torch.relu(layer(x))
        return self.head(x)


@awkward(
    "a twin of bnkit.add's, after the activation: as its output, and as the next layer's input",
    example=sequences,
    before="d",
    after="head",
    alone={"a": FOLLOWS, "b": FOLLOWS, "c": "batchnorm"},
)
def twin_after():
    return add(
        TwoStyles(),
        sequences(),
        placement="after_activation",
        where=lambda path, _: path in {"a", "b"},
    )
