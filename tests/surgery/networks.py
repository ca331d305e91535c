"""`networks`: a hypothesis strategy of small networks in a random eval state, each with an example.

Dense layers on vectors and sequences, convs of every kind on maps of 1 to 3 dimensions, batch norms
of every kind, activations as modules and functions and in place, residuals, layers called twice and
tied weights. |mean|/std at the inputs of batch norms goes up to 100.
"""

import copy
import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d

FUZZED = int(os.environ.get("BNKIT_FUZZ", "0"))  # networks for each test of `make fuzz`
RATIOS = (0, 1, 10, 100)  # |mean|/std at the input of a batch norm
LAYERS = 8  # weight layers and batch norms, at most


def for_networks(examples):
    """Return the settings of a test on so many networks, the same ones each time; or of a fuzz."""
    return settings(
        max_examples=FUZZED or examples,
        deadline=None,
        derandomize=not FUZZED,
        database=None,
        print_blob=True,  # by which @reproduce_failure makes a network of a fuzz again
        phases=[Phase.generate],  # to shrink a network takes minutes
        suppress_health_check=list(HealthCheck),  # networks are large for what hypothesis draws
    )


FUNCTIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "tanh in place": torch.tanh_,
    "abs": lambda x: x.abs(),
    "add": torch.add,
    "half": lambda x: x / 2,
    "transpose": lambda x: x.transpose(1, 2),
    "swap": lambda x: x.swapaxes(-1, -2).contiguous(),
    "flatten": lambda x: x.flatten(1),
    "rows": lambda x: x.reshape(-1, x.shape[-1]),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "there and back": lambda x: (
        x.movedim(1, -1).flatten(1).unflatten(1, (-1, x.shape[1])).mT
        if x.dim() == 3
        else x.unsqueeze(0).squeeze(0)
    ),
    "dropout": lambda x: F.dropout(x, training=False),
    "first half": lambda x: x[:, : -(-x.shape[1] // 2)],
    "max pool": lambda x: x.amax(-1, keepdim=True),
}
MODULES = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "SiLU": nn.SiLU,
    "Identity": nn.Identity,
    "Dropout": nn.Dropout,
}
ACTIVATIONS = ("relu", "gelu", "abs", "tanh in place", "ReLU", "ReLU in place", "SiLU")
PASSAGES = ("Identity", "Dropout", "dropout", "there and back", "half", "first half")
NORMS = (
    *["torch", "bnkit", "torch", "bnkit"],
    *["not affine", "with an activation", "sync", "frozen", "own forward", "functional"],
)
TORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
OURS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
OFTEN = (True, True, True, False)
SELDOM = (False, False, False, True)


class FrozenBatchNorm(nn.Module):
    """A batch norm as libraries for detection have it: all in buffers."""

    def __init__(self, features):
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(features))

    def forward(self, x):
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = self.weight / (self.running_var + self.eps).sqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(shape) + shift.reshape(shape)


class OwnForward(nn.BatchNorm1d):
    """A batch norm that does something else."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var).clamp(-3, 3)


class ByFunction(nn.Module):
    """Batch norm as a function, with its state in a module of no known kind."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.weight, self.bias = (nn.Parameter(torch.ones(features)) for _ in range(2))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


@dataclass(frozen=True)
class Step:
    """One call: of a part of the network or of a function, on values made before."""

    inputs: tuple[int, ...]
    part: str = ""
    function: str = ""


class Generated(nn.Module):
    """Runs its steps one after another; the last value is the output."""

    def __init__(self):
        super().__init__()
        self.steps = []
        self.parts = nn.ModuleDict()

    def forward(self, x):
        values = [x.clone()]
        for step in self.steps:
            values.append(self.run(step, values))
        return values[-1]

    def run(self, step, values):
        call = self.parts[step.part] if step.part else FUNCTIONS[step.function]
        return call(*(values[index] for index in step.inputs))


@dataclass(repr=False)
class Network:
    """A model in a random eval state, and an example of what it takes."""

    model: Generated
    example: Tensor
    story: list = field(default_factory=list)

    def double(self):
        """Return a copy in float64."""
        return Network(copy.deepcopy(self.model).double(), self.example.double(), self.story)

    def _repr_pretty_(self, printer, _cycle):  # as hypothesis prints it
        printer.text(f"example {tuple(self.example.shape)}, {'; '.join(self.story)}")


@st.composite
def networks(draw, *, batch_norms=True, layers=LAYERS):
    """Draw a network; without `batch_norms` it has none, and otherwise at least one."""
    build = Build(draw)
    most = draw(st.integers(2, layers))
    while build.layers() < most:
        if batch_norms and draw(st.sampled_from(SELDOM)):
            build.norm()
        build.weights()
        if draw(st.sampled_from(SELDOM)):
            build.passage()
        if batch_norms and (not build.has("norm") or draw(st.sampled_from(OFTEN))):
            build.norm()
        if draw(st.sampled_from(OFTEN)):
            build.activation()
        if draw(st.sampled_from(SELDOM)):
            build.residual()
        if draw(st.sampled_from(SELDOM)):
            build.change_layout()
    return build.finish()


class Build:
    """Makes a network step by step; it knows every value on the example, in float64."""

    def __init__(self, draw):
        self.draw, self.model = draw, Generated().double().eval()
        self.random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
        shape = draw(st.sampled_from([(6, 5), (4, 3, 4), (4, 4, 7), (3, 4, 5, 6), (2, 4, 3, 3, 4)]))
        # (4, 3, 4) are sequences with the features last; all others have them on axis 1.
        self.last = len(shape) == 3 and shape[1] < shape[2] and shape[2] == 4
        example = self.normal(*shape)
        self.values, self.example = [example.clone()], example
        self.story, self.takes = [], {}  # part -> shape of what it takes

    @property
    def x(self):
        return self.values[-1]

    def normal(self, *shape):
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def uniform(self, low, high, *shape):
        values = torch.rand(shape, generator=self.random, dtype=torch.float64)
        return low + (high - low) * values

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def has(self, kind):
        return any(kind in line for line in self.story)

    def layers(self):
        return sum(line.startswith(("weights", "norm", "[", "tied")) for line in self.story)

    # --- steps

    def call(self, step, line):
        self.model.steps.append(step)
        with torch.no_grad():
            self.values.append(self.model.run(step, self.values))
        self.story.append(f"{line} of {step.inputs}")

    def here(self):
        return (len(self.values) - 1,)

    def function(self, name):
        self.call(Step(self.here(), function=name), name)

    def part(self, module, line):
        name = str(len(self.model.parts))
        self.model.parts[name] = module.double().eval()
        self.takes[name] = tuple(self.x.shape)
        self.call(Step(self.here(), part=name), f"{line} [{name}]")

    def named(self, name):
        if name in MODULES:
            self.part(MODULES[name](), name)
        else:
            self.function(name)

    def activation(self):
        self.named(self.one_of(*ACTIVATIONS))

    def passage(self):
        name = self.one_of(*PASSAGES)
        if name != "first half" or not self.last:
            self.named(name)

    def residual(self):
        same = [i for i, value in enumerate(self.values[:-1]) if value.shape == self.x.shape]
        if same:
            self.call(Step((*self.here(), self.one_of(*same)), function="add"), "residual")

    def change_layout(self):
        if self.x.dim() == 2:
            return
        self.function(self.one_of(*(["transpose", "rows"] if self.last else ["flatten", "tokens"])))
        name = self.model.steps[-1].function
        self.last = name == "tokens"

    # --- weight layers

    def weights(self):
        fitting = [
            name
            for name, shape in self.takes.items()
            if shape == tuple(self.x.shape) and self.can_take(self.model.parts[name])
        ]
        if fitting and self.draw(st.sampled_from(SELDOM)):
            self.reuse(self.one_of(*fitting))
            return
        dense = self.last or self.x.dim() == 2 or self.draw(st.sampled_from((*SELDOM, False)))
        layer = self.dense() if dense else self.conv()
        self.fill(layer)
        self.part(layer, f"weights {layer}")

    def can_take(self, part):
        """Return whether this part has weights, and statistics near those of the value."""
        if not hasattr(part, "running_mean"):
            return hasattr(part, "weight")
        mean = self.x.movedim(1, 0).flatten(1).mean(1)
        return bool((mean.abs() <= 100 * part.running_var.sqrt()).all())

    def reuse(self, name):
        if self.one_of(True, False):
            self.call(Step(self.here(), part=name), f"[{name}] again")
        else:
            twin = copy.deepcopy(self.model.parts[name])
            if isinstance(twin.weight, nn.Parameter):
                twin.weight = self.model.parts[name].weight
            self.part(twin, f"tied to [{name}]")

    def dense(self):
        return nn.Linear(self.x.shape[-1], self.one_of(3, 4, 6), bias=self.one_of(*OFTEN))

    def conv(self):
        rank, features = self.x.dim() - 3, self.x.shape[1]
        groups = self.one_of(*[g for g in (1, 2, 3, features) if features % g == 0])
        made = groups * self.one_of(1, 2) if groups > 1 else self.one_of(2, 4, 5)
        options = {"groups": groups, "bias": self.one_of(*OFTEN)}
        smallest = min(self.x.shape[2:])
        if self.draw(st.sampled_from(SELDOM)):
            stride = self.one_of(1, 1, 2) if self.x.numel() < 3000 else 1
            size = self.one_of(1, 2, 3)
            padding = self.one_of(0, size // 2)
            extra = self.one_of(0, stride - 1)
            if (smallest - 1) * stride + size - 2 * padding + extra < 1:
                size, padding = 1, 0
            options |= {"stride": stride, "padding": padding, "output_padding": extra}
            return TRANSPOSED[rank](features, made, size, **options)
        size, dilation = self.one_of(1, 2, 3), self.one_of(1, 1, 2)
        padding = self.one_of(0, 0, 1, "same")
        mode = self.one_of("zeros", "zeros", "circular", "reflect", "replicate")
        if mode == "reflect" and smallest < 5:
            mode = "replicate"
        if dilation * (size - 1) + 1 > smallest:
            size, dilation = 1, 1
        if mode == "circular" and smallest < 5:
            padding = 0
        if padding == "same" and dilation * (size - 1) % 2:
            padding = 0  # torch warns that it copies the input
        options |= {"dilation": dilation, "padding": padding, "padding_mode": mode}
        if padding != "same":
            options["stride"] = self.one_of(1, 1, 2)
        return CONVS[rank](features, made, size, **options)

    def fill(self, layer):
        """Give it weights that keep the spread, and means up to 100 times the spread."""
        layer.double()
        with torch.no_grad():
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(self.normal(*layer.weight.shape) / fan_in**0.5)
            if layer.bias is not None:
                ratio = self.one_of(*RATIOS)
                layer.bias.copy_(self.spread() * ratio * self.uniform(-1, 1, len(layer.bias)))

    def spread(self):
        return float((self.x - self.x.mean()).square().mean().sqrt().clamp_min(1e-3))

    # --- batch norms

    def norm(self):
        around = self.last and self.x.dim() == 3 and self.one_of(*OFTEN)
        if around:
            self.function("transpose")
        kind = self.one_of(*NORMS)
        norm = self.make_norm(kind)
        self.part(norm, f"norm {kind}")
        if around:
            self.function("transpose")

    def make_norm(self, kind):
        rank, features = self.x.dim(), self.x.shape[1]
        norm = {
            "torch": TORCH[rank],
            "bnkit": OURS[rank],
            "not affine": lambda n: TORCH[rank](n, affine=False),
            "with an activation": lambda n: OURS[rank](n, activation=self.one_of("relu", "silu")),
            "sync": nn.SyncBatchNorm,
            "frozen": FrozenBatchNorm,
            "own forward": OwnForward,
            "functional": ByFunction,
        }[kind](features).double()
        self.give_state(norm, features)
        return norm

    def give_state(self, norm, features):
        """Fill in statistics near those of what it will get, with |mean|/std of 100 at most."""
        channels = self.x.movedim(1, 0).flatten(1)
        mean = channels.mean(1)
        variance = (channels - mean[:, None]).square().mean(1)
        # Channels that hardly vary get a spread of the size of their mean: else every batch norm
        # of a chain would magnify what the one before it has rounded.
        varies = variance > torch.maximum((mean / 100) ** 2, torch.tensor(1e-4))
        variance = torch.where(varies, variance, mean**2 + 1)
        with torch.no_grad():
            norm.running_var.copy_(variance * self.uniform(1, 2, features))
            norm.running_mean.copy_(mean + norm.running_var.sqrt() * self.uniform(-1, 1, features))
            if norm.weight is not None:
                norm.weight.copy_(self.uniform(0.5, 1.5, features) * self.one_of(1, 1, -1))
                norm.bias.copy_(self.normal(features))

    def finish(self):
        return Network(self.model.float(), self.example.float(), self.story)
