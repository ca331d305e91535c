"""What a batch-normalised LSTM refuses, with what to do about it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnkit.layers.per_step import PerStepBatchNorm1d


def check_features(module: nn.RNNBase | nn.RNNCellBase, input: Tensor, weight: Tensor) -> None:
    """Raise RuntimeError for a wrong number of features, ValueError for another dtype."""
    if input.shape[-1] != module.input_size:
        raise RuntimeError(
            f"`input` of shape {tuple(input.shape)} has {input.shape[-1]} features on its last "
            f"axis, and input_size is {module.input_size}: make them equal"
        )
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise ValueError(
            f"`input` is {input.dtype} and the weights are {weight.dtype}: convert one of them, as "
            f"in input.to({weight.dtype})"
        )


def check_batch(module: nn.Module, input: Tensor, sequences: int) -> None:
    """Raise ValueError where batch norms in training get too few sequences for a variance."""
    norms = [child for child in module.children() if isinstance(child, PerStepBatchNorm1d)]
    if sequences < 2 and any(norm.needs_batch for norm in norms):
        raise ValueError(
            f"`input` of shape {tuple(input.shape)} has {sequences} sequence(s), of which training "
            f"can take no variance: use a larger mini-batch, drop the last incomplete one "
            f"(drop_last=True of a DataLoader), or call .eval() on the layer"
        )


def check_state(
    hx: tuple[Tensor, Tensor], shape_h: tuple[int, ...], shape_c: tuple[int, ...]
) -> None:
    """Raise RuntimeError where h or c of `hx` has another shape than those."""
    for name, values, shape in zip("hc", hx, (shape_h, shape_c), strict=True):
        if values.shape != shape:
            raise RuntimeError(
                f"`hx` has {name} of shape {tuple(values.shape)}: this layer and input need {shape}"
            )


def checked_lengths(lengths: Tensor | Sequence[int], *, sequences: int, steps: int) -> Tensor:
    """Return `lengths` as a tensor on the CPU; raise ValueError unless each is 1 to `steps`."""
    given = torch.as_tensor(lengths).cpu()
    if given.shape != (sequences,) or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(
            f"`lengths` is {given.dtype} of shape {tuple(given.shape)}: give one integer for each "
            f"of the {sequences} sequences"
        )
    wrong = [length for length in given.tolist() if not 1 <= length <= steps]
    if wrong:
        raise ValueError(
            f"`lengths` contains {wrong[0]}, and the input has {steps} steps: give 1 to {steps}; "
            f"leave empty sequences out of the mini-batch"
        )
    return given
