"""The named networks of the experiments, plain, and the twins of those that bring their own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.extras import joined
from bnkit.names import one_of
from bnkit.surgery import add
from bnkit.surgery.normalized import Layout, NormalizedInput, NormalizedOutput, own_batch_norm
from bnkit.surgery.verification import SurgeryError

HIDDEN = (100, 100, 100)  # Ioffe and Szegedy 2015, section 4.1

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "identity": nn.Identity,
}


def activation(name: str) -> Callable[[], nn.Module]:
    """Return the class that makes this activation; ValueError where there is none of the name.

    >>> activation("leaky-relu")()
    LeakyReLU(negative_slope=0.01)
    """
    return one_of(ACTIVATIONS, name, "activation")


def mlp(
    input_shape: Sequence[int], classes: int, *, activation: str, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    """Return a multilayer perceptron; by default with the three hidden layers of the paper.

    >>> sum(p.numel() for p in mlp((1, 28, 28), 10, activation="sigmoid").parameters())
    99710
    """
    if any(size < 1 for size in hidden):
        raise ValueError(f"`hidden` is {tuple(hidden)}: each layer needs at least one unit")
    make = one_of(ACTIVATIONS, activation, "activation")
    sizes = [math.prod(input_shape), *hidden]
    layers = _dense(sizes, make)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], classes))


def logistic(
    input_shape: Sequence[int], classes: int, *, activation: str, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    """Return softmax regression: one linear layer, so nothing that `activation` could change."""
    one_of(ACTIVATIONS, activation, "activation")
    _fixed("logistic", hidden)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))


def dlology(
    input_shape: Sequence[int], classes: int, *, activation: str, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    """Return the network of the DLology post: three unpadded convolutions and two dense layers.

    >>> sum(p.numel() for p in dlology((1, 28, 28), 10, activation="relu").parameters())
    93322
    """
    _fixed("dlology", hidden)
    channels, height, width = _image("dlology", input_shape, at_least=18)
    make = one_of(ACTIVATIONS, activation, "activation")
    # Pixels that are left: each convolution takes two of a side, each pooling halves it.
    places = math.prod(((side - 2) // 2 - 2) // 2 - 2 for side in (height, width))
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3), make(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), make(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3), make(), nn.Flatten()),
        *_dense([64 * places, 64], make),
        nn.Linear(64, classes),
    )


def udacity(
    input_shape: Sequence[int], classes: int, *, activation: str, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    """Return the network of the Udacity exercise: 19 convolutions and two dense layers.

    Layer d has 4d feature maps; every third one halves the image, as TensorFlow's SAME padding
    does it: an even side is padded after its end only.
    """
    _fixed("udacity", hidden)
    channels, height, width = _image("udacity", input_shape)
    make = one_of(ACTIVATIONS, activation, "activation")
    layers: list[nn.Module] = []
    for depth in range(1, 20):
        maps, stride = 4 * depth, 2 if depth % 3 == 0 else 1
        layers += [*_same_conv(channels, maps, height, width, stride=stride), make()]
        channels, height, width = maps, math.ceil(height / stride), math.ceil(width / stride)
    dense = _dense([channels * height * width, 100], make)
    return nn.Sequential(*layers, nn.Flatten(), *dense, nn.Linear(100, classes))


def vgg(
    input_shape: Sequence[int], classes: int, *, activation: str, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    """Return a narrow VGG-11 (Simonyan and Zisserman 2015, table 1, A): 8 convolutions, 3 dense.

    It pools after each of its five blocks for as long as both sides of the image have two pixels.
    """
    _fixed("vgg", hidden)
    channels, height, width = _image("vgg", input_shape)
    make = one_of(ACTIVATIONS, activation, "activation")
    layers: list[nn.Module] = []
    for block in ((16,), (32,), (64, 64), (64, 64), (64, 64)):
        for maps in block:
            layers += [nn.Conv2d(channels, maps, 3, padding=1), make()]
            channels = maps
        if min(height, width) > 1:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    dense = _dense([channels * height * width, 64, 64], make)
    return nn.Sequential(*layers, nn.Flatten(), *dense, nn.Linear(64, classes))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, added before the second activation.

    The shortcut is a 1×1 convolution where the shape changes (He et al. 2016, section 3.3, B).
    """

    def __init__(
        self, channels: int, maps: int, *, stride: int, make: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        same = channels == maps and stride == 1
        self.conv1 = nn.Conv2d(channels, maps, 3, stride=stride, padding=1)
        self.activation1 = make()
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1)
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, maps, 1, stride=stride)
        self.activation2 = make()

    def forward(self, input: Tensor) -> Tensor:
        """Return the block's feature maps, (N, maps, H / stride, W / stride) rounded up."""
        residual: Tensor = self.conv2(self.activation1(self.conv1(input)))
        output: Tensor = self.activation2(residual + self.shortcut(input))
        return output


def resnet(
    input_shape: Sequence[int], classes: int, *, activation: str, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    """Return a small residual network: a convolution, three stages of two blocks, a linear layer.

    After He et al. 2016, section 4.2 (n = 2, half the width), without its batch norm.
    """
    _fixed("resnet", hidden)
    channels, _, _ = _image("resnet", input_shape)
    make = one_of(ACTIVATIONS, activation, "activation")
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1), make()),
        *(ResidualBlock(8, 8, stride=1, make=make), ResidualBlock(8, 8, stride=1, make=make)),
        *(ResidualBlock(8, 16, stride=2, make=make), ResidualBlock(16, 16, stride=1, make=make)),
        *(ResidualBlock(16, 32, stride=2, make=make), ResidualBlock(32, 32, stride=1, make=make)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)),
    )


def add_to_logits_too(
    plain: nn.Module, example: Any, *, placement: str, momentum: float, eps: float
) -> nn.Module:
    """Return `bnkit.add`'s twin, whose last dense layer is normalised too, as in DLology's post.

    Raises SurgeryError after the activation, since no activation follows the last layer.
    """
    if placement != "before_activation":
        raise SurgeryError(
            f"`placement` is {placement!r}, and this network also normalises its outputs, which "
            f"no activation follows: use before_activation"
        )
    twin = add(plain, example, momentum=momentum, eps=eps)
    path, last = _dense_layers(twin)[-1]
    layout = Layout(path, last.out_features, axis=-1, rank=None)
    own_batch_norm(last, layout, place=NormalizedOutput, momentum=momentum, eps=eps)
    last.register_parameter("bias", None)
    return twin


def add_to_inputs(
    plain: nn.Module, example: Any, *, placement: str, momentum: float, eps: float
) -> nn.Module:
    """Return the twin of a network without hidden layers: its inputs are normalised.

    There is no activation to be before or after, so `placement` changes nothing.
    """
    del placement, example
    twin = duplicate(plain)
    path, first = _dense_layers(twin)[0]
    layout = Layout(path, first.in_features, axis=-1, rank=None)
    own_batch_norm(first, layout, place=NormalizedInput, momentum=momentum, eps=eps)
    return twin


@dataclass(frozen=True)
class Network:
    """How to build a network, one line on it, and its batch norm side where that is its own.

    `build(input_shape, classes, activation=..., hidden=...)`, for images (C, H, W), draws from
    torch's global generator, and raises ValueError for an unknown activation, for images that do
    not fit, and for `hidden` where the layers are fixed. `with_batch_norm` takes the plain model
    and an example; None means `bnkit.add`.
    """

    build: Callable[..., nn.Module]
    summary: str
    with_batch_norm: Callable[..., nn.Module] | None = None


NETWORKS: dict[str, Network] = {
    "mlp": Network(mlp, "dense, three hidden layers of 100 units as in the paper, or --hidden"),
    "dlology": Network(
        dlology, "3 convolutions and 2 dense layers, of the DLology post", add_to_logits_too
    ),
    "udacity": Network(udacity, "19 convolutions and 2 dense layers, of the Udacity exercise"),
    "vgg": Network(vgg, "a narrow VGG-11: 8 convolutions, 3 dense layers"),
    "resnet": Network(resnet, "6 residual blocks, 14 layers"),
    "logistic": Network(logistic, "one linear layer: nothing hidden, no activation", add_to_inputs),
}


def networks() -> dict[str, Network]:
    """Return the named networks, with those that join by an entry point, which is a `Network`.

    >>> sorted(networks())[:3]
    ['dlology', 'logistic', 'mlp']
    """
    return {**NETWORKS, **joined("bnkit.networks")}


def network(name: str) -> Network:
    """Return the network of this name; ValueError where there is none.

    >>> network("logistic").build((1, 8, 8), 10, activation="identity")
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=64, out_features=10, bias=True)
    )
    """
    return one_of(networks(), name, "network")


def _dense(sizes: Sequence[int], make: Callable[[], nn.Module]) -> list[nn.Module]:
    return [layer for n, units in pairwise(sizes) for layer in (nn.Linear(n, units), make())]


def _same_conv(
    channels: int, maps: int, height: int, width: int, *, stride: int
) -> list[nn.Module]:
    """Return a 3×3 convolution padded as TensorFlow's SAME, with its padding layer if uneven."""
    before = [0 if stride == 2 and side % 2 == 0 else 1 for side in (width, height)]
    if before == [1, 1]:
        return [nn.Conv2d(channels, maps, 3, stride=stride, padding=1)]
    left, top = before
    return [nn.ZeroPad2d((left, 1, top, 1)), nn.Conv2d(channels, maps, 3, stride=stride)]


def _image(name: str, input_shape: Sequence[int], *, at_least: int = 1) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ValueError(
            f"network {name!r} needs images, so an `input_shape` of (channels, height, width), "
            f"and got {tuple(input_shape)}: choose 'mlp' for other inputs"
        )
    channels, height, width = input_shape
    if min(height, width) < at_least:
        raise ValueError(
            f"network {name!r} needs images of at least {at_least}×{at_least} pixels and got "
            f"{height}×{width}: choose larger images, or another network such as 'vgg' or 'mlp'"
        )
    return channels, height, width


def _fixed(name: str, hidden: Sequence[int]) -> None:
    if tuple(hidden) != HIDDEN:
        raise ValueError(
            f"network {name!r} has fixed layers, and `hidden` is {tuple(hidden)}: leave it out, "
            f"or choose 'mlp'"
        )


def _dense_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
