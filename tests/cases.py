"""Awkward tensors, each with the reason why it is there."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bnkit.kernels import choice


def as_it_is(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def batch_innermost(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def every_second_value(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], -1)[..., 0]


def off_by_one_value(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def one_sample_repeated(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)  # stride 0


@dataclass(frozen=True)
class Case:
    """An input of batch norm: `shape` (N, C, ...), normal values scale·g + shift, arranged."""

    why: str
    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0
    arrange: Callable[[Tensor], Tensor] = as_it_is

    def input(self, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
        values = torch.randn(self.shape, generator=seeded(seed), dtype=torch.float64)
        return self.arrange((values * self.scale + self.shift).to(dtype))

    def fits(self, dtype: torch.dtype) -> bool:
        return abs(self.shift) + 8 * self.scale < torch.finfo(dtype).max

    def condition(self, eps: float) -> float:
        """By how much rounding of the mean is magnified in what is normalised."""
        return 1 + abs(self.shift) / (self.scale**2 + eps) ** 0.5

    def __str__(self) -> str:
        return self.why


def equal(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether both are the same: to the last bit by torch's kernels, else to rounding.

    `make test` runs the layers by both.
    """
    if choice.forced == "torch" or choice.missing_core() or not ours.is_floating_point():
        return torch.equal(ours, theirs)
    eps = torch.finfo(theirs.dtype).eps
    near = (64 if eps < 1e-6 else 16) * eps
    scale = max(1.0, float(theirs.detach().abs().nan_to_num(0, 0).max())) if theirs.numel() else 1.0
    same = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return same and torch.allclose(ours, theirs, rtol=near, atol=near * scale, equal_nan=True)


def torchs(kind: type[nn.Module], features: int, *, bias: bool = True, **options) -> nn.Module:
    """Return torch's own layer; without a bias too, for which torch 2.9 has no option."""
    if bias or "bias" in inspect.signature(kind).parameters:
        return kind(features, **options, **({} if bias else {"bias": False}))
    layer = kind(features, **options)
    layer.register_parameter("bias", None)
    return layer


def constructor(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a batch norm of torch, with the `bias` that torch 2.9 lacks."""
    parameters = dict(inspect.signature(kind).parameters)
    last = inspect.Parameter("bias", inspect.Parameter.KEYWORD_ONLY, default=True)
    return {**parameters, "bias": parameters.get("bias", last)}


def since(version: str, what: str) -> pytest.MarkDecorator:
    """Return what skips a test on a torch before `version`, which lacks what is said."""
    return pytest.mark.skipif(torch.__version__ < version, reason=f"torch before {version} {what}")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CASES = (
    Case("ordinary", (8, 3, 5, 5)),
    Case("the mini-batch of the first experiments", (60, 100)),
    Case("one sample: statistics over space only", (1, 3, 7)),
    Case("two values per channel, the fewest", (2, 5)),
    Case("one channel", (16, 1, 3)),
    Case("more channels than values", (2, 67, 2)),
    Case("no power of two anywhere", (5, 13, 7, 11)),
    Case("volumes", (2, 3, 3, 2, 4)),
    Case("more dimensions than any layer takes", (2, 3, 2, 2, 2, 2)),
    Case("more values than float16 can count", (2, 1, 40_000)),
    Case("mean far from zero: E[x²] − E[x]² has no digits left", (16, 4, 9), shift=1e4),
    Case("variance far below eps", (16, 4, 9), scale=1e-5),
    Case("constant channels: variance 0", (6, 3, 4), scale=0.0, shift=0.1),
    Case("squares near the largest float32", (6, 3, 4), scale=1e17),
    Case("channels innermost in memory", (4, 6, 5, 3), arrange=channels_last),
    Case("batch innermost in memory", (4, 6, 5), arrange=batch_innermost),
    Case("a view with gaps", (4, 6, 5), arrange=every_second_value),
    Case("a view that starts off alignment", (4, 6, 5), arrange=off_by_one_value),
    Case("an expanded view: one sample N times", (4, 6, 5), arrange=one_sample_repeated),
)
