"""The activations that a batch norm can end in, by name: each with its gradient."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """An elementwise function f of the pre-activation z, and its gradient.

    `gradient(dy, z)` is dy · f′(z). Both keep shape and dtype and follow torch at the kinks and
    for values that are not finite: where the derivative is a choice of 0, it is 0 for every dy.
    """

    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


LEAKY_SLOPE = 0.01  # torch's default


def _identity(z: Tensor) -> Tensor:
    return z


def _identity_gradient(dy: Tensor, z: Tensor) -> Tensor:  # noqa: ARG001  as every gradient
    return dy


def _relu_gradient(dy: Tensor, z: Tensor) -> Tensor:
    return torch.where(z <= 0, 0, dy)  # dy for NaN, as torch


def _leaky_relu_gradient(dy: Tensor, z: Tensor) -> Tensor:
    return torch.where(z > 0, dy, dy * LEAKY_SLOPE)


def _relu6_gradient(dy: Tensor, z: Tensor) -> Tensor:
    return torch.where((z <= 0) | (z >= 6), 0, dy)


def _silu_gradient(dy: Tensor, z: Tensor) -> Tensor:
    sigma = torch.sigmoid(z)
    return dy * (sigma * (1 + z * (1 - sigma)))


def _hardswish_gradient(dy: Tensor, z: Tensor) -> Tensor:
    # z·(z + 3)/6 lies between the kinks.
    return torch.where(z <= -3, 0, torch.where(z >= 3, dy, dy * (z / 3 + 0.5)))


def _gelu_gradient(dy: Tensor, z: Tensor) -> Tensor:
    # Φ(z) + z·φ(z), with the distribution and the density of the standard normal.
    distribution = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return dy * (distribution + z * density)


def _sigmoid_gradient(dy: Tensor, z: Tensor) -> Tensor:
    y = torch.sigmoid(z)
    return dy * (1 - y) * y


def _tanh_gradient(dy: Tensor, z: Tensor) -> Tensor:
    y = torch.tanh(z)
    return dy * (1 - y * y)


ACTIVATIONS: Mapping[str | None, Activation] = {
    None: Activation(_identity, _identity_gradient),
    "relu": Activation(torch.relu, _relu_gradient),
    "leaky_relu": Activation(F.leaky_relu, _leaky_relu_gradient),
    "relu6": Activation(F.relu6, _relu6_gradient),
    "silu": Activation(F.silu, _silu_gradient),
    "hardswish": Activation(F.hardswish, _hardswish_gradient),
    "gelu": Activation(F.gelu, _gelu_gradient),
    "sigmoid": Activation(torch.sigmoid, _sigmoid_gradient),
    "tanh": Activation(torch.tanh, _tanh_gradient),
}

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # as the core numbers them


def find_activation(name: str | None) -> Activation:
    """Return the activation called `name`; None is the identity.

    Raises ValueError for an unknown name, and lists the known ones.

    >>> find_activation("relu").function(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if name not in ACTIVATIONS:
        known = ", ".join(repr(known) for known in ACTIVATIONS)
        raise ValueError(f"`activation` is {name!r}: choose one of {known}")
    return ACTIVATIONS[name]
