"""`Reader`: an LSTM that reads an image pixel by pixel, with or without recurrent batch norm."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.layers.per_step import PerStepBatchNorm1d
from bnkit.layers.recurrent import BatchNormLSTM

Order = Literal["in order", "permuted"]
ORDERS: tuple[Order, ...] = ("in order", "permuted")


def order_of(order: Order, pixels: int) -> Tensor:
    """Return which pixel is read at each step: line by line, or in one fixed permutation.

    >>> order_of("in order", 4)
    tensor([0, 1, 2, 3])
    """
    if order == "in order":
        return torch.arange(pixels)
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """An LSTM that reads an image one pixel a step, and names its class after the last.

    `order` says which pixel is read when, after the image (N, 1, H, W) has been averaged over
    squares of `pool`×`pool`. Without `gamma` it is torch's LSTM. The initial h is noise of standard
    deviation `noise`, since constant first pixels would have variance 0. After Cooijmans et al.
    2017, section 5.1; the initial weights are those of their program, and the biases 0.

    >>> Reader(order_of("permuted", 16), 10, gamma=0.1, hidden=5)(torch.rand(3, 1, 4, 4)).shape
    torch.Size([3, 10])
    """

    order: Tensor

    def __init__(
        self,
        order: Tensor,
        classes: int,
        *,
        gamma: float | None,
        hidden: int,
        noise: float = 0.1,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.noise, self.pool = noise, pool
        self.lstm = nn.LSTM(1, hidden) if gamma is None else _normalised(hidden, len(order), gamma)
        self.head = nn.Linear(hidden, classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Set the weights of inputs orthogonal, those of the recurrence to 1, biases to 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("weight_hh_l0"):
                parameter.copy_(torch.eye(self.lstm.hidden_size).repeat(4, 1))  # each gate
            elif ".bias" in name:
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:  # not gamma
                nn.init.orthogonal_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class scores (N, classes) of images (N, 1, H, W)."""
        pixels = F.avg_pool2d(images, self.pool).flatten(1)[:, self.order]
        h = self.noise * torch.randn(1, len(pixels), self.lstm.hidden_size, device=pixels.device)
        outputs, _ = self.lstm(pixels.T.unsqueeze(2), (h, torch.zeros_like(h)))
        scores: Tensor = self.head(outputs[-1])
        return scores


def _normalised(hidden: int, steps: int, gamma: float) -> BatchNormLSTM:
    """Return the layer; without momentum, so that its running statistics are plain averages."""
    lstm = BatchNormLSTM(1, hidden, max_steps=steps, momentum=None)
    for norm in _norms(lstm):
        nn.init.constant_(norm.weight, gamma)
    return lstm


@torch.no_grad()
def average_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of recurrent batch norms to averages over these mini-batches.

    The authors evaluate with averages over the training set, not with moving ones. `model` is in
    training mode, in which it uses neither.
    """
    norms = _norms(model)
    for norm in norms:
        norm.reset_running_stats()
    for batch in batches if norms else ():
        model(batch)


def _norms(model: nn.Module) -> list[PerStepBatchNorm1d]:
    return [layer for layer in model.modules() if isinstance(layer, PerStepBatchNorm1d)]
