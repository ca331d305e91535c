"""What is timed: the batch norms of well-known networks, and a few that are not images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# Channels and side of feature maps: ResNet-50, MobileNetV2, DenseNet-121.
_MAPS = (
    *((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)),
    *((96, 112), (144, 56), (384, 14)),
    *((128, 56), (128, 28), (640, 14)),
)
_OTHERS = ((60, 100), (256, 1024), (32, 64, 1000), (4, 32, 16, 56, 56))


@dataclass(frozen=True)
class Case:
    """A mini-batch in float32: its shape, and whether its channels lie innermost.

    >>> Case((32, 64, 56, 56), channels_last=True).bytes
    25690112
    """

    shape: tuple[int, ...]
    channels_last: bool = False

    @property
    def bytes(self) -> int:
        """The size of the mini-batch."""
        return 4 * torch.Size(self.shape).numel()

    @property
    def layout(self) -> str:
        """The order of its memory, in words."""
        return "channels last" if self.channels_last else "channels first"

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the mini-batch, which requires a gradient, and the gradient of the output."""
        generator = torch.Generator().manual_seed(0)
        x, dy = torch.randn(2, *self.shape, generator=generator)
        if self.channels_last:
            x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy))
        return x.requires_grad_(), dy

    def torch_layers(self) -> nn.Sequential:
        """Return torch's batch norm and ReLU for it."""
        return nn.Sequential(_KINDS[len(self.shape)](self.shape[1]), nn.ReLU())

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {self.layout}"


CASES = (
    *(Case((32, c, side, side), last) for last in (False, True) for c, side in _MAPS),
    *map(Case, _OTHERS),
)
# Where a call, the ends of vectors or few channels may cost more than the work.
SMALL = (
    *(Case((16, 48, 400), last) for last in (False, True)),
    *(Case((64, 3, 64, 64), last) for last in (False, True)),
    *(Case((48, 320, 7, 7), last) for last in (False, True)),
)
QUICK = tuple(case for case in CASES if case.bytes < 2**24)
