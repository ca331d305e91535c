"""`Losses`: what the loss is by the statistics of the mini-batches, and in eval mode."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Any, Any], Any]


@dataclass(eq=False)
class Losses:
    """The means of `loss(output, target)` over the mini-batches, each by its number of rows.

    >>> losses = Losses(lambda output, target: (output - target).square().mean())
    >>> losses.add((torch.tensor([3.0]), torch.tensor([1.0])), torch.tensor([1.0]), rows=2)
    >>> losses.means
    (4.0, 0.0)
    """

    loss: Loss
    rows: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise TypeError(
                f"`loss` is a {type(self.loss).__name__}: pass a function of the model's output "
                f"and the target, as torch.nn.functional.cross_entropy"
            )

    def add(self, outputs: tuple[Any, Any], target: Any, *, rows: int | None) -> None:
        """Take in one mini-batch: what the model made of it as trained and in eval mode."""
        if target is None:
            raise ValueError(
                "`loss` is given, and a mini-batch of `batches` has no target: pass mini-batches "
                "(inputs, target), or leave `loss` out"
            )
        if any(output is None for output in outputs):
            return  # the model fails on it; `not_run` says so
        weight = rows or 1
        for index, output in enumerate(outputs):
            self.sums[index] += weight * _number(self.loss(output, target))
        self.rows += weight

    @property
    def means(self) -> tuple[float, float] | None:
        """The loss by batch statistics and in eval mode, None if no mini-batch could be run."""
        if not self.rows:
            return None
        as_trained, in_eval = (part / self.rows for part in self.sums)
        return as_trained, in_eval


def _number(value: Any) -> float:
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    raise TypeError(
        f"`loss` returned a {type(value).__name__}{shape}: it must return one number, the mean "
        f"over the mini-batch"
    )
