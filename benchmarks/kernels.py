"""BN+ReLU on the CPU, training forward and backward: these kernels against torch eager.

    python benchmarks/kernels.py

Correctness first: outputs and gradients must agree with float64. Then, shape by shape and
interleaved, the medians of torch (nn.BatchNorm and nn.ReLU), of the kernels with fresh and with
recycled memory, and of a copy; nothing else should run on the machine. A copy is two passes over
memory; the minimum for training is five where a block of channels stays in the cache between its
two readings, and eight where not. The figures go to benchmarks/kernels.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.kernels import cpu, memory, reference
from bnkit.kernels.cpu.cutting import CACHED
from bnkit.lab.environment import environment

FIGURES = Path(__file__).with_suffix(".json")
# Channels and side at batch 32: ResNet-50, MobileNetV2, DenseNet-121.
MAPS = [
    *[(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)],
    *[(96, 112), (144, 56), (384, 14)],
    *[(128, 56), (128, 28), (640, 14)],
]
OTHERS = [(60, 100), (256, 1024), (32, 64, 1000), (4, 32, 16, 56, 56)]
LARGE = 2**24  # bytes
SECONDS = 2.0  # for each shape


class Kernels(torch.autograd.Function):
    """Batch norm and ReLU by the kernels, with autograd's own costs as torch has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, mean, variance = cpu.batch_norm_forward(x, weight, bias, eps=1e-5, activation="relu")
        ctx.save_for_backward(x, mean, variance, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gradients = cpu.batch_norm_backward(dy, *ctx.saved_tensors, eps=1e-5, activation="relu")
        return gradients[:3]


def inputs(shape: tuple[int, ...], *, last: bool) -> tuple[Tensor, Tensor, nn.Module]:
    """Return x, the gradient of y and torch's layers."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    torch.manual_seed(0)
    x, dy = torch.randn(2, *shape)
    if last:
        x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy))
    return x.requires_grad_(), dy, nn.Sequential(kind(shape[1]), nn.ReLU())


def check(x: Tensor, dy: Tensor, layers: nn.Module) -> None:
    norm = layers[0]
    y = Kernels.apply(x, norm.weight, norm.bias)
    got = (y, *torch.autograd.grad(y, (x, norm.weight, norm.bias), dy))
    wide = [t.detach().double() for t in (x, norm.weight, norm.bias)]
    given = {"eps": 1e-5, "activation": "relu"}
    exact, mean, variance = reference.batch_norm_forward(*wide, **given)
    gradients = reference.batch_norm_backward(
        dy.double(), wide[0], mean, variance, *wide[1:], **given
    )
    near_kink = exact.new_tensor(0)
    for ours, theirs in zip(got, (exact, *gradients), strict=False):
        # At the kink the last digit decides between dy and 0.
        error = (ours - theirs).abs() > 1e-4 * (1 + theirs.abs().max())
        near_kink = near_kink + error.sum()
    assert near_kink <= 1 + x.numel() * 1e-6, f"{near_kink} values are wrong"


def measure(shape: tuple[int, ...], *, last: bool) -> dict[str, Any]:
    x, dy, layers = inputs(shape, last=last)
    check(x, dy, layers)
    norm, copied = layers[0], torch.empty_like(x)
    parameters = x, norm.weight, norm.bias

    def kernels() -> None:
        torch.autograd.grad(Kernels.apply(*parameters), parameters, dy)

    def eager() -> None:
        torch.autograd.grad(layers(x), parameters, dy)

    def copy() -> None:
        with torch.no_grad():
            copied.copy_(x)

    seconds = interleaved({"torch": eager, "recycled": kernels, "fresh": kernels, "copy": copy})
    with torch.no_grad():
        evaluation = interleaved(evaluated(x, layers))
    size = x.numel() * 4
    fits = 3 * size < 2 * CACHED if last or len(shape) == 2 else 2 * size / shape[1] < 4 * CACHED
    minimum = (2.5 if fits else 4) * seconds["copy"]
    return {
        "shape": shape,
        "layout": "channels last" if last else "channels first",
        "bytes": size,
        "milliseconds": {name: round(1000 * value, 4) for name, value in seconds.items()},
        "torch / recycled": round(seconds["torch"] / seconds["recycled"], 2),
        "torch / fresh": round(seconds["torch"] / seconds["fresh"], 2),
        "recycled / minimum": round(seconds["recycled"] / minimum, 2),
        "inference: torch / recycled": round(evaluation["torch"] / evaluation["recycled"], 2),
    }


def evaluated(x: Tensor, layers: nn.Module) -> dict[str, Callable[[], object]]:
    norm = layers.eval()[0]
    statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias

    def kernels() -> Tensor:
        return cpu.batch_norm_inference(x, *statistics, eps=norm.eps, activation="relu")

    return {"torch": lambda: layers(x), "recycled": kernels}


def interleaved(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each, taken turn by turn after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    while len(times["torch"]) < 6 or time.perf_counter() - began < SECONDS:
        for name, run in runs.items():
            if name == "recycled":
                run()  # leaves its memory to the next
            limit = memory.idle_limit()
            if name == "fresh":
                memory.limit_idle_bytes(0)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
            memory.limit_idle_bytes(limit)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes only, nothing kept")
    quick = parser.parse_args().quick
    maps = [((32, channels, side, side), last) for last in (False, True) for channels, side in MAPS]
    cases = [*maps, *((shape, False) for shape in OTHERS)]
    rows = []
    for shape, last in cases:
        if quick and torch.Size(shape).numel() > 2**22:
            continue
        rows.append(measure(shape, last=last))
        print(json.dumps(rows[-1]), flush=True)
    figures = {"environment": environment(), "summary": summary(rows), "rows": rows}
    print(json.dumps(figures["summary"], indent=1))
    if not quick:
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    large = [row for row in rows if row["bytes"] >= LARGE]
    return {
        "torch / recycled": _mean(rows, "torch / recycled"),
        "torch / fresh": _mean(rows, "torch / fresh"),
        "least of torch / recycled": min(row["torch / recycled"] for row in rows),
        "recycled / minimum, large shapes": _mean(large, "recycled / minimum"),
        "inference: torch / recycled, large shapes": _mean(large, "inference: torch / recycled"),
    }


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return round(statistics.geometric_mean([row[key] for row in rows]), 2) if rows else 0.0


if __name__ == "__main__":
    main()
