"""The specification of batch norm's arithmetic, in plain PyTorch: any device, any float dtype.

The notation is that of Ioffe and Szegedy (Batch Normalization, ICML 2015). With the mini-batch
statistics μ, σ² of each channel over its m values, a `residual` r and an `activation` f:

    x̂ = (x − μ) / √(σ² + ε)      z = γ·x̂ + β + r      y = f(z)

`weight` is γ, `bias` is β; without them they are 1 and 0. Channels are axis 1 of `x`, which has
two dimensions or more. Statistics and parameters have shape (C,). The arithmetic is done in
float32, for float64 inputs in float64; sums are taken in float64. Deviations are taken from the
mean before anything else is done with them, so that a mean far from zero costs no digits.

These functions record no gradients: `batch_norm_backward` is the gradient.
"""

import torch
from torch import Tensor

from bnkit.kernels.activations import find_activation
from bnkit.moments import Moments, dtype_of_sums

Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


@torch.no_grad()
def batch_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the mean and biased variance of each channel by which x was normalised.

    y has the shape, dtype and memory format of `x`; the statistics are (C,), in float32 at least.
    Algorithm 1 of the paper. Raises ValueError for an empty `x`.

    >>> y, mean, variance = batch_norm_forward(torch.tensor([[1.0], [3.0]]), None, None, eps=0.0)
    >>> y.flatten(), mean, variance
    (tensor([-1.,  1.]), tensor([2.]), tensor([1.]))
    """
    moments = Moments.of(x)
    mean, variance = (s.to(_dtype_of_arithmetic(x)) for s in (moments.mean, moments.variance))
    y = batch_norm_inference(
        x, mean, variance, weight, bias, eps=eps, activation=activation, residual=residual
    )
    return y, mean, variance


@torch.no_grad()
def running_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    count: int,
    momentum: float,
    guarded: bool = True,
) -> tuple[Tensor, Tensor, bool]:
    """Return the running mean and variance after a mini-batch, and whether it entered them.

    `mean` and `variance` (biased) are what `batch_norm_forward` returned, of `count` values per
    channel. With momentum m the mean becomes (1 − m)·running + m·μ, and the variance the same with
    the unbiased σ²·count/(count − 1), since it stands for that of all data (section 3.1 of the
    paper). Where anything of that is not finite, a guarded mini-batch stays out whole.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> running_statistics(zero, one, one, one, count=2, momentum=0.1)
    (tensor([0.1000]), tensor([1.1000]), True)
    """
    unbiased = variance.double() * (count / (count - 1))
    pairs = (running_mean, mean.double()), (running_var, unbiased)
    moved = [((1 - momentum) * old.double() + momentum * new).to(old.dtype) for old, new in pairs]
    if guarded and not all(values.isfinite().all() for values in moved):
        return running_mean, running_var, False
    return moved[0], moved[1], True


@torch.no_grad()
def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    training: bool = True,
) -> Gradients:
    """Return dx, dweight, dbias and dresidual, given dy and what `batch_norm_forward` returned.

    Each gradient has the shape and dtype of its tensor, and is None where that is None. Section 3
    of the paper gives

        ∂ℓ/∂x̂  = γ·∂ℓ/∂z
        ∂ℓ/∂σ² = Σ ∂ℓ/∂x̂ · (x − μ) · −½·(σ² + ε)^(−3/2)
        ∂ℓ/∂μ  = Σ ∂ℓ/∂x̂ · −1/√(σ² + ε) + ∂ℓ/∂σ² · Σ −2(x − μ)/m
        ∂ℓ/∂x  = ∂ℓ/∂x̂ · 1/√(σ² + ε) + ∂ℓ/∂σ² · 2(x − μ)/m + ∂ℓ/∂μ · 1/m
        ∂ℓ/∂γ  = Σ ∂ℓ/∂z · x̂
        ∂ℓ/∂β  = Σ ∂ℓ/∂z

    and since Σ (x − μ) = 0, the third inserted into the fourth leaves

        ∂ℓ/∂x  = γ/√(σ² + ε) · (∂ℓ/∂z − mean(∂ℓ/∂z) − x̂ · mean(∂ℓ/∂z · x̂)).

    Without `training` the statistics are constants, as `batch_norm_inference` takes them, and both
    means are left out.

    >>> x, dy = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    >>> _, mean, variance = batch_norm_forward(x, None, None, eps=1e-5)
    >>> dx, *_ = batch_norm_backward(dy, x, mean, variance, None, None, eps=1e-5)
    >>> dx.flatten()
    tensor([ 0.1763, -0.2204,  0.0441])
    """
    x_hat = _normalise(x, mean, variance, eps)
    z = _pre_activation(x_hat, weight, bias, residual)
    dz = find_activation(activation).gradient(dy.to(z.dtype), z)
    dx = dz
    if training:
        dx = dz - (_mean_of_channels(dz) + x_hat * _mean_of_channels(dz * x_hat))
    dx = dx * _slope(x, variance, weight, eps)
    return (
        dx.to(x.dtype),
        None if weight is None else _sum_of_channels(dz * x_hat).to(weight.dtype),
        None if bias is None else _sum_of_channels(dz).to(bias.dtype),
        None if residual is None else dz.to(residual.dtype),
    )


@torch.no_grad()
def batch_norm_inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return y for a given mean and variance of each channel, in the shape and dtype of `x`.

    >>> mean, variance = torch.tensor([1.0]), torch.tensor([4.0])
    >>> batch_norm_inference(torch.tensor([[5.0]]), mean, variance, None, None, eps=0.0)
    tensor([[2.]])
    """
    x_hat = _normalise(x, mean, variance, eps)
    z = _pre_activation(x_hat, weight, bias, residual)
    return find_activation(activation).function(z).to(x.dtype)


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    deviations = x.to(_dtype_of_arithmetic(x)) - _beside(x, mean)
    return deviations * (_beside(x, variance) + eps).rsqrt()


def _slope(x: Tensor, variance: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    invstd = (_beside(x, variance) + eps).rsqrt()
    return invstd if weight is None else invstd * _beside(x, weight)


def _pre_activation(
    x_hat: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    z = x_hat if weight is None else x_hat * _beside(x_hat, weight)
    z = z if bias is None else z + _beside(x_hat, bias)
    return z if residual is None else z + residual.to(z.dtype)


def _sum_of_channels(values: Tensor) -> Tensor:
    return values.sum(_axes(values), dtype=dtype_of_sums(values))  # (C,)


def _mean_of_channels(values: Tensor) -> Tensor:
    sums = values.mean(_axes(values), keepdim=True, dtype=dtype_of_sums(values))
    return sums.to(values.dtype)  # (1, C, 1, ...)


def _axes(values: Tensor) -> tuple[int, ...]:
    return (0, *range(2, values.dim()))  # all but the channels


def _beside(x: Tensor, values: Tensor) -> Tensor:
    """(C,) → (1, C, 1, ...), in the dtype of the arithmetic."""
    return values.to(_dtype_of_arithmetic(x)).reshape(1, -1, *[1] * (x.dim() - 2))


def _dtype_of_arithmetic(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
