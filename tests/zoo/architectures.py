"""Architectures for images, small: what follows a layer is seldom the next in the list."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.catalogue import Net, awkward, conv, dense, images


@awkward(
    "layers and activations are siblings, with pooling and flatten between",
    before="0 3 7",
    after="1 4 8",
    alone={"9": "output layer"},
)
def chain():
    return nn.Sequential(
        conv(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv(4, 6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.0),
        dense(54, 5),
        nn.ELU(),
        dense(5, 3),
    )


@awkward(
    "pooling, flatten and dropout lie between a layer and its activation",
    before="0",
    alone={"5": "output layer"},
    after="4",
)
def late_activation():
    return nn.Sequential(
        conv(), nn.AvgPool2d(3), nn.Flatten(), nn.Dropout(0.0), nn.ReLU(), dense(16, 3)
    )


class Block(Net):
    """A residual block; the sum is written in place."""

    def __init__(self, features_in, features_out):
        super().__init__()
        self.a, self.b = conv(features_in, features_out), conv(features_out, features_out)
        self.down = None if features_in == features_out else conv(features_in, features_out, 1)

    def parts(self):
        return {}

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


@awkward(
    "residual sums in place; the shortcut is a layer in one block and the input in another",
    before="stem blocks.0.a blocks.0.b blocks.1.a blocks.1.b blocks.1.down",
    after="blocks.0.b blocks.1.b head",  # the input of a block has two readers
    alone={"head": "output layer"},
)
class Residual(Net):
    def parts(self):
        blocks = nn.ModuleList([Block(4, 4), Block(4, 6)])
        return {"stem": conv(), "blocks": blocks, "head": dense(6, 3)}

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@awkward(
    "pre-activation residual: a layer's output reaches activations only through sums",
    before="stem a b c d",
    after="a b c d head",
    alone={"head": "output layer"},
)
class PreActivation(Net):
    def parts(self):
        return {name: conv() for name in ("stem", "a", "b", "c", "d")} | {"head": dense(4, 3)}

    def forward(self, x):
        x = self.stem(x)
        x = x + self.b(torch.relu(self.a(torch.relu(x))))
        x = x + self.d(torch.relu(self.c(torch.relu(x))))
        return self.head(F.adaptive_avg_pool2d(torch.relu(x), 1).flatten(1))


@awkward(
    "dense connections: each output is concatenated with all before it, then activated",
    before="layers.0 layers.1 layers.2",
    after="layers.1 layers.2 head",
    alone={"head": "output layer"},
)
class DenselyConnected(Net):
    def parts(self):
        layers = nn.ModuleList([conv(), conv(8, 4), conv(12, 4)])
        return {"layers": layers, "head": dense(16, 3)}

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x.relu() if x.size(1) > 4 else x)], dim=1)
        return self.head(x.relu().mean((2, 3)))


@awkward(
    "branches of an Inception module, in a dict, joined before one activation",
    before="branches.one branches.three pool.1",
    after="act",
    alone={"head": "output layer"},
)
class Inception(Net):
    def parts(self):
        pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(4, 2, 1))
        branches = {"one": conv(4, 2, 1), "three": conv(4, 3)}
        return {
            "branches": nn.ModuleDict(branches),
            "pool": pool,
            "act": nn.ReLU(),
            "head": dense(7, 3),
        }

    def forward(self, x):
        made = [branch(x) for branch in self.branches.values()]
        x = self.act(torch.cat([*made, self.pool(x)], 1))
        return self.head(x.amax((2, 3)))


@awkward(
    "U-Net: transposed convolutions, skip connections, output of the size of the input",
    before="down bottom up merge",
    alone={"head": "output layer"},
    after="acts.0 acts.1 acts.2 merge",
)
class UNet(Net):
    def parts(self):
        return {
            "down": conv(4, 4),
            "bottom": conv(4, 6, stride=2),
            "up": nn.ConvTranspose2d(6, 4, 2, stride=2),
            "merge": conv(8, 4),
            "head": conv(4, 2, 1),
            "acts": nn.ModuleList(nn.LeakyReLU() for _ in range(3)),
        }

    def forward(self, x):
        skip = self.acts[0](self.down(x))
        x = self.acts[1](self.bottom(skip))
        x = torch.cat([skip, self.up(x)], 1)
        return self.head(self.acts[2](self.merge(x.relu())))


@awkward(
    "squeeze and excitation: a product with a gate is no passage, the gate is no output",
    before="stem",
    after="body",
    alone={
        "body": "no activation follows: mul()",
        "squeeze": "one place per sample, after adaptive_avg_pool2d()",
        "excite": "one place per sample",
        "head": "output layer",
    },
)
class Gated(Net):
    def parts(self):
        names = {"stem": conv(), "body": conv(), "squeeze": conv(4, 2, 1), "excite": conv(2, 4, 1)}
        return {**names, "head": dense(4, 3)}

    def forward(self, x):
        x = self.body(F.relu(self.stem(x)))
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        x = x * torch.sigmoid(self.excite(gate))
        return self.head(F.relu(x).mean((2, 3)))


@awkward(
    "halves of one output are value and gate",
    before="both",
    alone={"head": "output layer"},
)
class GatedLinearUnit(Net):
    def parts(self):
        return {"both": conv(4, 8), "head": conv()}

    def forward(self, x):
        value, gate = self.both(x).chunk(2, dim=1)
        return self.head(value * gate.sigmoid())


@awkward(
    "super-resolution: pixel shuffle, and a sum with the input that leaves the model",
    before="a",
    after="b",
    alone={"b": "no activation follows", "out": "output layer"},
)
class SuperResolution(Net):
    def parts(self):
        return {"a": conv(4, 8), "b": conv(8, 16), "out": conv(4, 4)}

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2)
        y = F.pixel_shuffle(self.b(F.relu(self.a(x[:, :, ::2, ::2]))), 2)
        return x + self.out(y)


@awkward(
    "features of several depths leave a backbone, all after activations",
    before="a b",
    after="acts.0 acts.1",
)
class Pyramid(Net):
    def parts(self):
        acts = nn.ModuleList([nn.ReLU(), nn.ReLU(inplace=True)])
        return {"a": conv(), "b": conv(), "acts": acts}

    def forward(self, x):
        first = self.acts[0](self.a(x))
        return [first, self.acts[1](self.b(first))]


@awkward(
    "a head of training time is judged by training mode",
    before="body",
    after="act",
    alone={"auxiliary": "output layer"},
)
class Auxiliary(Net):
    def parts(self):
        return {"body": conv(), "act": nn.ReLU(), "auxiliary": conv(), "head": conv()}

    def forward(self, x):
        x = self.act(self.body(x))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


@awkward(
    "nested containers without a forward of their own",
    example=images,
    before="0.0.0 1.body.0",
    after="0.0.1 1.body.1",
    alone={"1.body.2": "output layer"},
)
def nested():
    inner = nn.Sequential(nn.Sequential(conv(), nn.PReLU()))
    outer = nn.Sequential()
    outer.add_module("body", nn.Sequential(conv(), nn.CELU(), conv()))
    return nn.Sequential(inner, outer)
