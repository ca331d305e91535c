"""How the kernels see a tensor: as (outer, channels, inner), contiguous, whatever its dimensions.

Channels first is (N, C, H·W), channels last is (N·H·W, C, 1). Neighbouring threads take
neighbouring values in both, so one kernel serves both and reads whole cache lines.
"""

from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class View:
    """The sizes of a contiguous tensor seen as (outer, channels, inner)."""

    outer: int
    channels: int
    inner: int

    def arguments(self) -> dict[str, int]:
        """Return the sizes as the kernels take them.

        A size comes as groups × the power of two that divides it, known at compilation: the
        compiler then knows where 16 bytes lie together and moves them at once. (By itself it
        looks for 16 only, which leaves 14 × 14 feature maps and 24 channels to single values.)
        """
        channel_group = gcd(self.channels, 16) if self.inner == 1 else 1
        inner_group = gcd(self.inner, 16)
        return {
            "outer": self.outer,
            "channel_groups": self.channels // channel_group,
            "inner_groups": self.inner // inner_group,
            "CHANNEL_GROUP": channel_group,
            "INNER_GROUP": inner_group,
        }


def collapse(x: Tensor) -> tuple[Tensor, View]:
    """Return `x` in one of the two layouts (a copy if it lies otherwise), and its view.

    Raises TypeError for a dtype that the kernels do not take.

    >>> collapse(torch.zeros(2, 3, 4, 5))[1], collapse(torch.zeros(2, 4, 5, 3).movedim(3, 1))[1]
    (View(outer=2, channels=3, inner=20), View(outer=40, channels=3, inner=1))
    """
    if x.dtype not in DTYPES:
        raise TypeError(
            f"`x` is {x.dtype} and the GPU kernels take float32, bfloat16 and float16: convert it, "
            f"or use the reference kernels"
        )
    if not (x.is_contiguous() or _channels_last(x)):
        x = x.clone()  # without gaps, and if possible with the axes in the order that they had
    samples, channels = x.shape[:2]
    if _channels_last(x) and not x.is_contiguous():
        return x, View(samples * prod(x.shape[2:]), channels, 1)
    return x.contiguous(), View(samples, channels, prod(x.shape[2:]))


def arranged(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` in the layout of `x`, which `collapse` returned."""
    if x.is_contiguous():
        return values.contiguous()
    return values.movedim(1, -1).contiguous().movedim(-1, 1)


def new_pair(x: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return room for two results of each channel, (C,) each, in float32."""
    shape = (view.channels,)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


Terms = tuple[Tensor | None, ...]  # mean, variance, weight, bias and residual


def terms(x: Tensor, *given: Tensor | None) -> Terms:
    """Return what z is made of besides `x`, without gaps, as the kernels take it."""
    *channelwise, residual = given
    contiguous = (None if t is None else t.contiguous() for t in channelwise)
    return *contiguous, None if residual is None else arranged(residual, x)


def _channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()
