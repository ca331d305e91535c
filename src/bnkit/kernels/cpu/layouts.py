"""How a tensor lies in memory: channel by channel in planes, or channels innermost in rows."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Rows of `channels` × `space` values: samples of planes, or pixels of single values."""

    name: str  # "planes" or "rows"
    rows: int
    channels: int
    space: int

    @classmethod
    def of(cls, x: Tensor) -> "Layout":
        """Return the layout of `x`; what is in neither order counts as planes, to be copied.

        >>> import torch
        >>> Layout.of(torch.empty(8, 3, 5, 5))
        Layout(name='planes', rows=8, channels=3, space=25)
        >>> Layout.of(torch.empty(60, 100))
        Layout(name='rows', rows=60, channels=100, space=1)
        """
        if x.dim() == 2:
            return cls("rows", len(x), x.shape[1], 1)
        values, channels = x.numel(), x.shape[1]
        space = values // (len(x) * channels) if values else 0
        if space != 1 and (x.is_contiguous() or not _channels_innermost(x).is_contiguous()):
            return cls("planes", len(x), channels, space)
        return cls("rows", len(x) * space, channels, 1)

    def arrange(self, t: Tensor) -> Tensor:
        """Return `t`, copied only where its memory is in another order."""
        if self.name == "planes" or t.dim() == 2:
            return t.contiguous()
        return _channels_innermost(t).contiguous().movedim(-1, 1)


def _channels_innermost(x: Tensor) -> Tensor:
    return x.movedim(1, -1)
