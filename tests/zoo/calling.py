"""Ways to call layers and activations that a static reading of the model would miss."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.catalogue import Net, awkward, conv, dense, images, vectors


class Layers(Net):
    """Three layers of which the first two are followed by something odd."""

    def parts(self):
        return {"a": conv(), "b": conv(), "head": conv()}


@awkward(
    "activations write into slices and views of the output",
    before="a b",
    after="b head",
    alone={"head": "output layer"},
)
class InPlace(Layers):
    def forward(self, x):
        x = self.a(x)
        x[:, :2].relu_()
        y = self.b(x)
        F.relu(y.flatten(1).view_as(y), inplace=True)
        return self.head(y)


@awkward(
    "results go into prepared tensors, by out= and by assignment",
    before="a b",
    after="b head",
    alone={"head": "output layer"},
)
class Prepared(Layers):
    def forward(self, x):
        with torch.no_grad():  # torch has no gradients with out=
            y = torch.zeros_like(x)
            y[...] = self.a(x)
            torch.clamp(y, min=0, out=y)
            z = torch.empty_like(y)
            z.copy_(self.b(y + 1))
            torch.tanh(z, out=z)
        return self.head(z)


@awkward(
    "the branch depends on the data",
    before="b",
    after="head",
    alone={"a": "not called on this example", "head": "output layer"},
)
class Branching(Layers):
    def forward(self, x):
        layer = self.a if x.sum().item() > 1e9 else self.b
        return self.head(F.leaky_relu(layer(x)))


@awkward(
    "a layer fails, and the model goes on with another",
    before="b",
    after="head",
    alone={"a": "not called on this example", "head": "output layer"},
)
class Forgiving(Layers):
    def parts(self):
        return super().parts() | {"a": conv(5, 4)}

    def forward(self, x):
        try:
            x = self.a(x)
        except RuntimeError:
            x = self.b(x)
        return self.head(F.mish(x))


@awkward(
    "modules call each other recursively, each layer once",
    before="a next.a next.next.a",
    after="next.a next.next.a head",
    alone={"head": "output layer", "next.head": "not called"},
)
class Recursive(Net):
    def __init__(self, depth=2):
        super().__init__()
        self.a, self.head = conv(), conv()
        self.next = Recursive(depth - 1) if depth else None

    def parts(self):
        return {}

    def forward(self, x, *, inner=False):
        x = F.selu(self.a(x))
        x = x if self.next is None else self.next(x, inner=True)
        return x if inner else self.head(x)


@awkward(
    "layers are called by their forward, past all hooks",
    before="b",
    after="head",
    alone={"a": "not called itself: conv2d()", "head": "output layer"},
)
class ByForward(Layers):
    def forward(self, x):
        return self.head(self.b(self.a.forward(x).relu()).relu())


@awkward(
    "the model counts, caches and replaces its buffers while it runs",
    before="a b",
    after="head",
    alone={"head": "output layer"},
)
class Busy(Layers):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("average", torch.zeros(1, 4, 1, 1))
        self.calls, self.last = [], None

    def forward(self, x):
        self.calls.append(tuple(x.shape))
        self.count = self.count + 1  # another tensor: the old one's identity may be used again
        x = F.relu(self.a(x))
        self.average.mul_(0.9).add_(x.detach().mean((0, 2, 3), keepdim=True), alpha=0.1)
        self.last = self.b(x).relu()
        return self.head(self.last)


@awkward(
    "a value takes its way through a buffer",
    before="a",
    after="head",
    alone={"head": "output layer"},
)
class ThroughBuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(4, 4, 6, 6))

    def parts(self):
        return {"a": conv(), "head": conv()}

    def forward(self, x):
        self.memory = self.memory.detach().clone()
        self.memory.copy_(self.a(x))
        return self.head(self.memory.relu())


class Swish(torch.autograd.Function):
    """An activation with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        y = torch.sigmoid(x)
        return gradient * (y + x * y * (1 - y))


@awkward(
    "activations inside an autograd function and inside activation checkpointing",
    before="a b",
    after="head",
    alone={"head": "output layer"},
)
class Wrapped(Layers):
    def forward(self, x):
        x = Swish.apply(self.a(x))
        return self.head(checkpoint(self.second, x, use_reentrant=False))

    def second(self, x):
        return F.hardtanh(self.b(x))


@awkward(
    "parts of the forward run without gradients",
    before="a b",
    after="b head",
    alone={"head": "output layer"},
)
class Ungraded(Layers):
    def forward(self, x):
        with torch.no_grad():
            x = self.a(x)
            x.relu_()
        return self.head(self.b(x).softmax(1))


@awkward(
    "tensors come and go by keywords; layers and functions have the same names",
    example=lambda: {"image": images(), "scale": 2.0},
    before="relu add",
    after="head",
    alone={"head": "output layer"},
)
class Keywords(Net):
    def parts(self):
        return {"relu": conv(), "add": conv(), "head": conv()}

    def forward(self, *, scale, image):
        x = torch.relu(input=self.relu(input=torch.mul(image, other=scale)))
        return self.head(torch.add(other=self.add(input=x), input=x).clamp(min=0))


@awkward(
    "a layer is asked for its dtype, device and for new tensors like its weight",
    before="a b",
    after="b head",
    alone={"head": "output layer"},
)
class Asked(Layers):
    def forward(self, x):
        x = x.to(self.a.weight.dtype).type_as(self.a.weight).requires_grad_()
        state = self.b.weight.new_zeros(x.shape) + torch.zeros_like(self.a.weight).sum()
        return self.head(F.silu(self.b(F.silu(self.a(x + state)))))


def double(_module, _inputs, output):
    return output * 2


def rectify(_module, inputs):
    return (inputs[0].relu(),)


@awkward(
    "hooks of the user change what layers get and give",
    before="0 1",
    after="1 2",
    alone={"2": "output layer"},
)
def hooked():
    model = nn.Sequential(conv(), conv(), conv())
    model[0].register_forward_hook(double)
    model[1].register_forward_pre_hook(rectify)
    model[2].register_forward_pre_hook(rectify)
    return model


@awkward(
    "a model without containers that calls dense functions on parameters of its own",
    example=vectors,
    before="b",
    after="head",
    alone={"linear()": "without a module", "head": "output layer"},
)
class OwnParameters(Net):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def parts(self):
        return {"b": dense(), "head": dense()}

    def forward(self, x):
        x = F.linear(x, self.weight).relu()
        return self.head(torch.special.expit(self.b(x) + self.b.weight.new_ones(4)))


@awkward(
    "every image of the mini-batch goes its own way to the activation",
    before="a",
    alone={"head": "output layer"},
)
class Split(Net):
    def parts(self):
        return {"a": conv(), "head": conv()}

    def forward(self, x):
        return self.head(torch.stack([image.relu() for image in self.a(x)]))
