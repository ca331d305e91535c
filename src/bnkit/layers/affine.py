"""`ChannelAffine` and `ResidualActivation`: what a batch norm is in eval mode, without one."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnkit.kernels.activations import LEAKY_SLOPE, find_activation
from bnkit.layers.leaves import TracedAsLeaf, is_proxy


class ChannelAffine(TracedAsLeaf):
    """(x − center) · weight + bias for each channel (axis 1): a batch norm of fixed statistics.

    Inputs are (N, C, ...) of any rank, and the output has their shape and dtype. `weight` and
    `bias` are parameters, `center` is a buffer, all (C,); it starts as the identity. With
    `activation`, one of those of `bnkit.functional.batch_norm`, and an optional residual in forward
    it ends as such a batch norm. A `center` of its own keeps the digits that weight · x + bias
    loses where the mean is large beside the standard deviation.

    Raises ValueError for an unknown activation and for inputs of other channels.

    >>> layer = ChannelAffine(2)
    >>> layer.center.fill_(1.0), layer(torch.tensor([[1.0, 3.0]]))
    (tensor([1., 1.]), tensor([[0., 2.]], grad_fn=<AddcmulBackward0>))
    """

    center: Tensor

    def __init__(
        self,
        num_features: int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        find_activation(activation)
        super().__init__()
        self.num_features = num_features
        self.activation = activation
        ones = functools.partial(torch.ones, num_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(ones())
        self.bias = nn.Parameter(torch.zeros_like(self.weight))
        self.register_buffer("center", torch.zeros_like(ones()))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activation((input − center) · weight + bias + residual)."""
        if is_proxy(input):
            return self.as_leaf(input, residual, None)
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"`input` of shape {list(input.shape)} does not have {self.num_features} channels "
                f"on axis 1, as this ChannelAffine does"
            )
        shape = [1] * input.dim()
        shape[1] = self.num_features
        deviations = input - self.center.view(shape)
        y = torch.addcmul(self.bias.view(shape), deviations, self.weight.view(shape))
        y = y.to(input.dtype) if residual is None else y.to(input.dtype) + residual
        # So written, torch.jit.script compiles a layer without an activation.
        return y if self.activation is None else finish(y, None, self.activation)

    def extra_repr(self) -> str:
        """Return the features and the activation, for printing."""
        return f"{self.num_features}" + (
            f", activation={self.activation!r}" if self.activation else ""
        )


class ResidualActivation(TracedAsLeaf):
    """activation(x + residual): what remains of a batch norm whose map is in another layer.

    >>> ResidualActivation("relu")(torch.ones(1), torch.tensor([-3.0]))
    tensor([0.])
    """

    def __init__(self, activation: str | None = None) -> None:
        find_activation(activation)
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activation(input + residual)."""
        if is_proxy(input):
            return self.as_leaf(input, residual, None)
        return finish(input, residual, self.activation)

    def extra_repr(self) -> str:
        """Return the activation, for printing."""
        return f"{self.activation!r}" if self.activation else ""


def finish(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """Return activation(y + residual), as a batch norm ends."""
    y = y if residual is None else y + residual
    return find_activation(activation).function(y)


_MODULES: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, LEAKY_SLOPE),
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def activation_module(name: str | None) -> nn.Module:
    """Return torch's module for the activation called `name`; Identity for None.

    Raises ValueError for an unknown name.

    >>> activation_module("relu6"), activation_module(None)
    (ReLU6(), Identity())
    """
    find_activation(name)
    return _MODULES[name]()
