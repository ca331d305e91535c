"""The algebra of folding, in float64: a batch norm's affine map, and layers that take one in.

In eval mode a batch norm is y = scale · (x − center) + offset for each channel. A linear layer
W x + b takes the map of its output in by scaling its output features, and that of its input by
scaling its input features, with a bias that makes up for the rest.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.behaviour import Affine
from bnkit.moments import dtype_of_sums
from bnkit.roles import WEIGHT_LAYERS

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def after_layer(layer: Any, affine: Affine) -> tuple[Tensor, Tensor]:
    """Return weight, in its dtype, and bias, in float64, of `layer` followed by `affine`.

    That is scale · W and scale · (b − center) + offset.

    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> affine = Affine(*torch.tensor([[2.0], [3.0], [1.0]]))
    >>> weight, bias = after_layer(layer, affine)
    >>> torch.equal(weight, 2 * layer.weight), torch.equal(bias, 2 * layer.bias.double() - 5)
    (True, True)
    """
    made = torch.empty_like(layer.weight)
    scale = _by_group_of(layer, affine.scale)
    for block, wide, into in _blocks(layer, made):
        into.copy_(wide.mul_(_along(scale[:, block], 1, wide)))
    return made, affine.scale * (_bias(layer) - affine.center) + affine.offset


def before_layer(layer: Any, affine: Affine) -> tuple[Tensor, Tensor]:
    """Return weight, in its dtype, and bias, in float64, of `layer` preceded by `affine`.

    The weight is W · scale, rounded to W′, and the bias W · offset + b − W′ · center. So an input
    of `center` everywhere, the middle of what comes, gives exactly what it gave, and the rounding
    of a weight that meets large means does no harm.

    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> affine = Affine(*torch.tensor([[2.0], [3.0], [1.0]]))
    >>> weight, bias = before_layer(layer, affine)
    >>> y = weight.double() @ torch.tensor([3.0]).double() + bias
    >>> torch.allclose(y, (layer.weight[0].double() + layer.bias), rtol=1e-15, atol=1e-15)
    True
    """
    made = torch.empty_like(layer.weight)
    scale, offset, center = (
        _by_group_of(layer, t) for t in (affine.scale, affine.offset, affine.center)
    )
    middle = []
    for _, wide, into in _blocks(layer, made):
        into.copy_(wide * _along(scale, 2, wide))
        rounded = into.to(wide.dtype)
        middle.append(_response(wide, offset) - _response(rounded, center))
    return made, _bias(layer) + torch.cat(middle, dim=1).flatten()


def feature_axis(layer: nn.Module) -> int:
    """Return the axis of the features in what `layer` takes and makes, counted from the end.

    >>> feature_axis(nn.Linear(2, 2)), feature_axis(nn.Conv2d(2, 2, 1))
    (-1, -3)
    """
    rank = next(rank for kind, rank in WEIGHT_LAYERS.items() if isinstance(layer, kind))
    return -1 if rank is None else 1 - rank


def features_out(layer: Any) -> int:
    """Return how many features `layer` makes."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def is_exact_before(layer: Any, affine: Affine) -> bool:
    """Return whether a map before `layer` can be taken in: whether it shifts all places alike.

    Zeros of padding are not shifted, so there is none where the shift is not zero; other padding
    repeats values that are. A transposed conv has places that fewer taps reach than others, but for
    kernels of one value with stride 1.

    >>> import torch
    >>> affine = Affine(torch.ones(2), torch.zeros(2), torch.ones(2))
    >>> is_exact_before(nn.Conv2d(2, 2, 3), affine)
    True
    >>> is_exact_before(nn.Conv2d(2, 2, 3, padding=1), affine)
    False
    """
    if isinstance(layer, nn.Linear) or not affine.shift.any():
        return True
    if isinstance(layer, TRANSPOSED):
        reached_alike = {*layer.kernel_size, *layer.stride} == {1}
        # With stride 1, `output_size` in a call asks for nothing else.
        return reached_alike and not any(layer.output_padding)
    if isinstance(layer.padding, str):  # "same" pads to the kernel's reach, "valid" nothing
        padded = layer.padding == "same" and {*layer.kernel_size} != {1}
    else:
        padded = any(layer.padding)
    return layer.padding_mode != "zeros" or not padded


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(dtype_of_sums(values))


def _bias(layer: Any) -> Tensor:
    if layer.bias is None:
        return _wide(layer.weight.new_zeros(features_out(layer)))
    return _wide(layer.bias)


def _blocks(layer: Any, made: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield features out, the layer's weight for them in float64, and the same part of `made`.

    Both are (groups, features out, features in, *kernel). So many values at once stay in the
    caches: the whole weight in float64 takes seven times the time.
    """
    old, new = _by_group(layer, layer.weight.detach()), _by_group(layer, made)
    step = max(1, _BLOCK * old.shape[1] // max(1, old.numel()))
    for first in range(0, old.shape[1], step):
        block = slice(first, first + step)
        wide = old[:, block].to(dtype_of_sums(old), copy=True)
        yield block, wide, new[:, block]


_BLOCK = 2**16


def _by_group(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight as (groups, features out, features in, *kernel), in the same memory."""
    if isinstance(layer, nn.Linear):
        return weight[None]
    weight = weight.view(layer.groups, -1, *weight.shape[1:])
    return weight.transpose(1, 2) if isinstance(layer, TRANSPOSED) else weight


def _by_group_of(layer: Any, values: Tensor) -> Tensor:
    """Return values of features as (groups, features of a group)."""
    return values.view(1 if isinstance(layer, nn.Linear) else layer.groups, -1)


def _response(weight: Tensor, constant: Tensor) -> Tensor:
    """Return what a weight by groups makes of an input that is constant in each feature."""
    return (weight * _along(constant, 2, weight)).flatten(2).sum(2)


def _along(values: Tensor, axis: int, weight: Tensor) -> Tensor:
    """Return values of features by group, to be broadcast along an axis of `weight`."""
    shape = [values.shape[0], *[1] * (weight.dim() - 1)]
    shape[axis] = -1
    return values.reshape(shape)
