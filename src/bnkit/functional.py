"""`batch_norm`: the function behind the layers, torch's own with an activation and a residual."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bnkit.internals import current_backward
from bnkit.kernels import choice
from bnkit.kernels.activations import CODES, find_activation
from bnkit.kernels.autograd import batch_norm_forward, batch_norm_inference
from bnkit.kernels.call import Call
from bnkit.kernels.choice import choose_kernel, is_transformed, is_whole
from bnkit.kernels.operators import module_of

_Pair = tuple[Tensor | None, Tensor | None]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(batch_norm(input) + residual), in the shape and dtype of `input`.

    Without `activation` and `residual` this is torch.nn.functional.batch_norm: in training it
    normalises each channel (axis 1) by the mean and biased variance of the mini-batch and updates
    the running statistics in place (by the unbiased variance, old · (1 − momentum) + new ·
    momentum); otherwise it normalises by the running statistics. `residual` has the shape and
    dtype of `input`. `activation` is None, "relu", "leaky_relu" (slope 0.01), "relu6", "silu",
    "hardswish", "gelu" (exact), "sigmoid" or "tanh".

    Raises ValueError in training with one value per channel, for an unknown activation and for a
    residual of another shape or dtype, before any running statistic has changed.

    >>> import torch
    >>> x = torch.tensor([[-1.0], [3.0]])
    >>> batch_norm(x, None, None, training=True, activation="relu", residual=x).flatten()
    tensor([0.0000, 4.0000])
    """
    if activation is not None:
        find_activation(activation)
    if residual is not None:
        check_residual(input, residual)
    if training and is_recomputing():  # what it changes is not kept, but it saves as before
        running_mean, running_var = _copy(running_mean), _copy(running_var)
    running, affine = (running_mean, running_var), (weight, bias)
    whole = is_whole(input)
    if whole:
        y = _in_one_call(input, running, affine, residual, training, momentum, eps, activation)
        if y is not None:
            return y
    kernel = choose_kernel(input).kernel
    # What does not fit together, torch refuses with the errors that its users know.
    if kernel == "torch" or (whole and not choice.forced):
        y = _normalise(input, running, affine, training, momentum, eps)
        y = y if residual is None else y + residual
        return y if activation is None else find_activation(activation).function(y)
    _check_channels(input, running_mean, running_var, weight, bias)
    call = Call(input, *running, *affine, residual, eps, activation, training, kernel)
    if training:
        return _train(call._replace(mean=None, variance=None), running, momentum)
    if running_mean is None or running_var is None:
        raise ValueError(
            "`running_mean` and `running_var` are needed to normalise by with training=False: "
            "pass both, or training=True to normalise by the mini-batch"
        )
    return batch_norm_inference(call)


def train_in_one_call(
    input: Tensor,
    tracked: tuple[Tensor | None, ...],
    affine: _Pair,
    residual: Tensor | None,
    *,
    momentum: float,
    eps: float,
    activation: str | None,
    guard: bool,
) -> Tensor | None:
    """Return what `batch_norm` returns in training, and move and count what a layer tracks.

    `tracked` are the running mean and variance, the number of mini-batches that entered them, and
    that of those that a `guard` kept out. None where the core does not serve this call, or a
    mini-batch comes again: then nothing was done.
    """
    if activation not in CODES or not is_whole(input) or is_recomputing():
        return None
    y: Tensor | None = module_of("core").by_batch(
        input, *affine, residual, *tracked, momentum, eps, CODES[activation], guard
    )
    return y


def _in_one_call(
    input: Tensor,
    running: _Pair,
    affine: _Pair,
    residual: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str | None,
) -> Tensor | None:
    core, code = module_of("core"), CODES[activation]
    y: Tensor | None = None
    if training:
        counts = None, None
        y = core.by_batch(input, *affine, residual, *running, *counts, momentum, eps, code, False)
    elif running[0] is not None and running[1] is not None:
        y = core.by_statistics(input, *running, *affine, residual, eps, code)
    return y


def _normalise(
    input: Tensor, running: _Pair, affine: _Pair, training: bool, momentum: float, eps: float
) -> Tensor:
    try:
        return F.batch_norm(input, *running, *affine, training, momentum, eps)
    except ValueError:
        if training:
            _refuse_one_value_per_channel(input)
        raise


def _train(call: Call, running: _Pair, momentum: float) -> Tensor:
    _refuse_one_value_per_channel(call.x)
    y, mean, variance = batch_norm_forward(call)
    count = call.x.numel() // call.x.shape[1]  # values per channel; the variance is made unbiased
    update_running_statistics(*running, mean, variance * (count / (count - 1)), momentum)
    return y


def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
) -> None:
    """Replace the share `momentum` of the running statistics by `mean` and unbiased `variance`.

    All are (C,); the running statistics, if there are any, change in place. No gradient passes.

    >>> running_mean, running_var = torch.zeros(1), torch.ones(1)
    >>> update_running_statistics(running_mean, running_var, torch.ones(1), torch.zeros(1), 0.1)
    >>> running_mean, running_var
    (tensor([0.1000]), tensor([0.9000]))
    """
    for running, value in ((running_mean, mean), (running_var, variance)):
        if running is not None:
            value = value.detach().to(running.dtype)  # noqa: PLW2901  as what it is to be
            if is_transformed():  # torch.vmap has no rule for lerp_
                running.mul_(1 - momentum).add_(value, alpha=momentum)
            else:
                running.lerp_(value, momentum)


def is_recomputing() -> bool:
    """Return whether this forward runs inside a backward, as activation checkpointing runs it.

    Its mini-batch is already in the running statistics.
    """
    if torch.compiler.is_compiling():  # there torch's compiler traces a forward once
        return False
    return bool(current_backward() != -1)


def _copy(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.clone()


def check_residual(input: Tensor, residual: Tensor) -> None:
    """Raise ValueError for a residual of another shape, dtype or device than the input's."""
    if residual.shape != input.shape:
        raise ValueError(
            f"`residual` has shape {tuple(residual.shape)} and `input` {tuple(input.shape)}: "
            f"they are added element by element, so give them the same shape"
        )
    if residual.dtype != input.dtype:
        raise ValueError(
            f"`residual` is {residual.dtype} and `input` is {input.dtype}: convert one of them, "
            f"as in residual.to(input.dtype)"
        )
    if residual.device != input.device:
        raise ValueError(
            f"`residual` is on {residual.device} and `input` on {input.device}: move one of them"
        )


def _check_channels(input: Tensor, *values: Tensor | None) -> None:
    """Check what torch's own would check: the kernels read memory without looking."""
    names = ("running_mean", "running_var", "weight", "bias")
    shape, device = input.shape[1:2], input.device
    for name, value in zip(names, values, strict=True):
        if value is not None and (value.shape != shape or value.device != device):
            raise ValueError(
                f"`{name}` of shape {tuple(value.shape)} on {value.device} does not fit `input` "
                f"of shape {tuple(input.shape)} on {input.device}: it needs one value for each of "
                f"the {input.shape[1]} channels, on the same device"
            )


def _refuse_one_value_per_channel(input: Tensor) -> None:
    # Asked only once torch has refused the input: on small tensors every microsecond counts.
    if input.numel() == input.shape[1]:
        raise ValueError(
            f"`input` of shape {tuple(input.shape)} has 1 value per channel, of which training "
            f"can take no variance: use a larger mini-batch, drop the last incomplete one "
            f"(drop_last=True of a DataLoader), or call .eval() on the layer"
        )
