"""`measure`: one case, bnkit's layer against torch eager, torch.compile and a copy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.benchmarking.cases import Case
from bnkit.benchmarking.compiling import compiled_copy
from bnkit.benchmarking.timing import Program, interleaved
from bnkit.kernels import memory, reference
from bnkit.observation import evaluating
from bnkit.surgery.acceleration import accelerate

EPS = 1e-5  # of torch's layers
# Bytes of a block of channels that is read a second time from the cache, not from memory.
CACHED = 2**20


@dataclass(frozen=True)
class Measurement:
    """The median seconds of each program on one case.

    "torch" and "torch again" are the same program: what parts them is the noise. "bnkit" has
    recycled memory, "bnkit, fresh memory" has not. Programs of eval mode begin with "inference".
    """

    case: Case
    seconds: dict[str, float]

    def ratio(self, slower: str, faster: str = "bnkit") -> float | None:
        """Return how many times longer `slower` took, None where it did not run."""
        return self.seconds[slower] / self.seconds[faster] if slower in self.seconds else None

    @property
    def minimal_passes(self) -> int:
        """How often training must move a tensor of this size between memory and processor.

        Forward reads x and writes y, backward reads x and dy and writes dx. Where no block of
        channels fits into the cache, x is read twice in the forward, and x and dy in the backward.
        """
        case = self.case
        rows_innermost = case.channels_last or len(case.shape) == 2
        block = 32 * case.bytes // case.shape[1] if rows_innermost else case.bytes // case.shape[1]
        return 5 if 2 * block <= 2 * CACHED or case.bytes <= CACHED else 8

    @property
    def passes(self) -> float:
        """How many passes a copy (which makes two) would have made in the time of a step."""
        return 2 * self.seconds["bnkit"] / self.seconds["copy"]


def measure(case: Case, *, seconds: float = 2.0, compiled: bool = False) -> Measurement:
    """Return the measurement of one case, training and inference, once it is known to be right.

    `compiled` also times torch.compile, which needs a C++ compiler.
    """
    x, dy = case.tensors()
    layers = case.torch_layers()
    fast = accelerate(layers, x.detach()[:2] if x.dim() > 2 else x.detach())
    check(fast, x, dy)
    programs = {
        "torch": _training(layers, x, dy),
        "torch again": _training(layers, x, dy),
        "bnkit": _training(fast, x, dy),
        "copy": _copying(x),
    }
    if compiled:
        programs["torch.compile"] = _training(compiled_copy(layers), x, dy)
    found = interleaved(programs, seconds=seconds)
    # Apart from the others: a turn without recycling leaves them nothing to recycle.
    fresh = {"bnkit, fresh memory": _without_recycling(_training(fast, x, dy))}
    found |= interleaved(fresh, seconds=seconds / 4)
    evaluated = {
        "inference, torch": _inference(layers, x),
        "inference, bnkit": _inference(fast, x),
    }
    with evaluating(layers), evaluating(fast):
        return Measurement(case, found | interleaved(evaluated, seconds=seconds / 4))


def check(layers: nn.Module, x: Tensor, dy: Tensor) -> None:
    """Compare a training step with float64; raises ArithmeticError if it is wrong."""
    norm = layers[0]  # type: ignore[index]
    y = layers(x)
    found = (y, *torch.autograd.grad(y, (x, norm.weight, norm.bias), dy))
    wide = [t.detach().double() for t in (x, norm.weight, norm.bias)]
    exact, mean, variance = reference.batch_norm_forward(*wide, eps=EPS, activation="relu")
    dx, dweight, dbias, _ = reference.batch_norm_backward(
        dy.double(), wide[0], mean, variance, *wide[1:], eps=EPS, activation="relu"
    )
    for ours, theirs in zip(found, (exact, dx, dweight, dbias), strict=True):
        assert theirs is not None
        wrong = (ours - theirs).abs() > 1e-4 * (1 + theirs.abs().max())
        # At the kink of ReLU the last digit decides between dy and 0.
        if wrong.sum() > 1 + x.numel() * 1e-6:
            raise ArithmeticError(f"{int(wrong.sum())} values differ from float64 on {x.shape}")


def _training(layers: nn.Module, x: Tensor, dy: Tensor) -> Program:
    leaves = (x, *layers.parameters())
    return lambda: torch.autograd.grad(layers(x), leaves, dy)


def _inference(layers: nn.Module, x: Tensor) -> Program:
    x = x.detach()

    def run() -> Any:
        with torch.no_grad():
            return layers(x)

    return run


def _without_recycling(program: Program) -> Program:
    def run() -> None:
        limit = memory.idle_limit()
        memory.limit_idle_bytes(0)
        try:
            program()
        finally:
            memory.limit_idle_bytes(limit)

    return run


def _copying(x: Tensor) -> Callable[[], Tensor]:
    x = x.detach()
    target = torch.empty_like(x)
    return lambda: target.copy_(x)
