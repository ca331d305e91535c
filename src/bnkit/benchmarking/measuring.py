"""`measure`: one case, bnkit's layer against torch eager, torch.compile and a copy."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.benchmarking.cases import Case
from bnkit.kernels import memory, reference
from bnkit.observation import evaluating
from bnkit.surgery.acceleration import accelerate

Program = Callable[[], object]

TURNS = 5  # at least
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


# Timing, turn by turn, so that all programs meet the same machine


def interleaved(programs: Mapping[str, Program], *, seconds: float) -> dict[str, float]:
    """Return the median seconds of each program; they run turn by turn for `seconds` in all.

    One turn to warm up is not counted.

    >>> sorted(interleaved({"a": lambda: None, "b": lambda: None}, seconds=0.0))
    ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program()
    began = time.perf_counter()
    turns = 0
    while turns < TURNS or time.perf_counter() - began < seconds:
        for name, program in programs.items():
            times[name].append(_seconds(program))
        turns += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


def _seconds(program: Program) -> float:
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


# torch.compile as it is measured: known to work, and begun anew for each case


def compiled_copy(layers: nn.Module) -> nn.Module:
    """Return a copy of `layers` compiled as one graph, and forget all that was compiled before.

    Otherwise torch runs the ninth shape uncompiled, with a warning only. The `compile` method of
    torch's own containers compiles nothing at all.
    """
    torch.compiler.reset()
    compiled: Any = torch.compile(copy.deepcopy(layers), fullgraph=True, dynamic=False)
    return compiled  # type: ignore[no-any-return]


def refuse_without_compiler() -> None:
    """Compile a small function by torch.compile; ValueError, with the cause, where that fails."""

    def double(x: Tensor) -> Tensor:
        return x + x

    try:
        torch.compile(double)(torch.ones(8))
    except Exception as error:  # of many types, around the cause
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"`compiled` was asked for, and torch.compile fails on this machine "
            f"({type(cause).__name__}: {reason}): install a C++ compiler, or do without `compiled`"
        ) from error
