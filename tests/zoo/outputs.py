"""Ways out of a model: what is done with a result says whether its layer is an output layer."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.catalogue import Net, awkward, dense, vectors


class Classifier(Net):
    """Two hidden layers and a head, of which subclasses hand out something."""

    def parts(self):
        return {"a": dense(), "act": nn.ReLU(), "head": dense(4, 3)}

    def hidden(self, x):
        return self.act(self.a(x))


WAYS = {
    "logits leave as they are": lambda y: y,
    "logits leave through sigmoid": torch.sigmoid,
    "logits leave through tanh, scaled": lambda y: 2 * y.tanh_() + 1,
    "logits leave through softmax, reshaped": lambda y: F.softmax(y, -1).view(-1, 1, 3),
    "logits leave through log_softmax": lambda y: y.log_softmax(-1),
    "logits leave through a module": nn.LogSoftmax(dim=1),
    "probabilities leave as an array of numpy": lambda y: y.softmax(-1).detach().numpy(),
    "probabilities leave as a list": lambda y: y.softmax(-1).tolist(),
    "logits and probabilities leave": lambda y: {"logits": y, "more": [y.sigmoid()]},
}


class Ending(Classifier):
    """Hands its logits out in one of these ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        return WAYS[self.way](self.head(self.hidden(x)))


for _way in WAYS:
    awkward(_way, example=vectors, before="a", after="act", alone={"head": "output layer"})(
        functools.partial(Ending, _way)
    )


@awkward(
    "only the number of the class leaves",
    example=vectors,
    before="a",
    after="act",
    alone={"head": "no activation follows: argmax()"},
)
class Deciding(Classifier):
    def forward(self, x):
        return self.head(self.hidden(x)).argmax(-1)


@awkward(
    "an actor: tanh, then scale and shift of the action space, which are buffers",
    example=vectors,
    before="a",
    after="act",
    alone={"head": "output layer"},
)
class Actor(Classifier):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        return self.head(self.hidden(x)).tanh() * self.scale + self.shift


@awkward(
    "a feature extractor ends in ReLU, which is no answer",
    example=vectors,
    before="a head",
    after="act",
)
class Features(Classifier):
    def forward(self, x):
        return F.relu(self.head(self.hidden(x)))


class Pair(NamedTuple):
    """A named tuple of results."""

    logits: Tensor
    features: Tensor


@dataclass
class Answer:
    """A dataclass of results."""

    logits: Tensor
    features: Tensor


class Plain:
    """An output class that is no container."""

    def __init__(self, logits, features):
        self.logits, self.features = logits, features


class Slotted:
    """An output class without a dictionary."""

    __slots__ = ("features", "logits")

    def __init__(self, logits, features):
        self.logits, self.features = logits, features


class Returning(Classifier):
    """Returns logits, and features from before the activation, as one of these kinds."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        raw = self.a(x)
        return self.kind(self.head(self.act(raw)), raw)


for _kind in (Pair, Answer, Plain, Slotted):
    awkward(
        f"{_kind.__doc__[:-1].lower()}, one of them from before the activation",
        example=vectors,
        alone=dict.fromkeys(["a", "head"], "output layer"),
    )(functools.partial(Returning, _kind))


class Outside:
    """Takes tensors and keeps them where they cannot be found."""

    def __init__(self, logits):
        self.give = lambda: logits

    def __call__(self):
        return self.give()


@awkward(
    "what leaves is hidden from us, but no layer of the model reads it",
    example=vectors,
    before="a",
    after="act",
    alone={"head": "output layer"},
)
class Hidden(Classifier):
    def forward(self, x):
        return Outside(self.head(self.hidden(x)).sigmoid())
