"""Layers and weights that are used more than once."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.catalogue import Net, awkward, conv, dense, vectors


@awkward(
    "a siamese network calls its layers twice",
    example=lambda: (vectors(), vectors() + 1),
    alone={"body.0": "called 2 times in one forward"},
)
class Siamese(Net):
    def parts(self):
        return {"body": nn.Sequential(dense(), nn.ReLU(), dense())}

    def forward(self, a, b):
        return (self.body(a) - self.body(b)).square().sum(1)


@awkward(
    "a layer in a loop, then one that is not",
    before="last",
    after="head",
    alone={"again": "called 3 times in one forward", "head": "output layer"},
)
class Looped(Net):
    def parts(self):
        return {"again": conv(), "last": conv(), "act": nn.ReLU(), "head": conv()}

    def forward(self, x):
        for _ in range(3):
            x = self.act(self.again(x))
        return self.head(self.act(self.last(x)))


@awkward(
    "an autoencoder decodes by the transposed weight of its encoder",
    example=vectors,
    before="middle",
    after="middle_act",
    alone={"encode": "its parameters are shared: t() reads them too"},
)
class TiedAutoencoder(Net):
    def parts(self):
        return {"encode": dense(4, 2), "middle": dense(2, 2), "middle_act": nn.Softplus()}

    def forward(self, x):
        x = self.middle_act(self.middle(F.relu(self.encode(x))))
        return F.linear(x, self.encode.weight.t())


@awkward(
    "two layers hold one weight",
    example=vectors,
    before="c",
    after="acts.2",
    alone={"a": "shared with 'b'", "b": "shared with 'a'", "head": "output layer"},
)
class OneWeight(Net):
    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight

    def parts(self):
        acts = nn.ModuleList(nn.ReLU() for _ in range(3))
        return {name: dense() for name in ("a", "b", "c", "head")} | {"acts": acts}

    def forward(self, x):
        for layer, act in zip((self.a, self.b, self.c), self.acts, strict=True):
            x = act(layer(x))
        return self.head(x)


@awkward(
    "a language model's output layer holds the weight of its embedding",
    example=lambda: torch.arange(6).reshape(3, 2),
    before="hidden",
    after="act",
    alone={"head": "shared with 'words'"},
)
class TiedLanguageModel(Net):
    def __init__(self):
        super().__init__()
        self.head.weight = self.words.weight

    def parts(self):
        words, head = nn.Embedding(7, 4), dense(4, 7)
        return {"words": words, "hidden": dense(), "act": nn.Tanh(), "head": head}

    def forward(self, x):
        return self.head(self.act(self.hidden(self.words(x))))


@awkward(
    "one layer has two names, and is called once",
    example=vectors,
    before="body.0",
    after="body.1",
    alone={"body.2": "output layer"},
)
class TwoNames(Net):
    def __init__(self):
        super().__init__()
        self.first = self.body[0]

    def parts(self):
        return {"body": nn.Sequential(dense(), nn.Hardsigmoid(), dense())}

    def forward(self, x):
        return self.body[2](self.body[1](self.first(x)))
