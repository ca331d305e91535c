"""Errors of a training step of BN+ReLU in float32 against float64: bnkit's kernels beside torch.

    python benchmarks/accuracy.py

Ordinary data first (normal, mean 0.5): the largest error over the largest value, of the output and
of each gradient. Then the relative error of the variance at mean 4096 and standard deviation 1.
The figures go to benchmarks/accuracy.json.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bnkit.experiments.provenance import environment
from bnkit.kernels import core, reference

FIGURES = Path(__file__).with_suffix(".json")
SHAPES = [(32, 64, 56, 56), (32, 256, 28, 28), (32, 2048, 7, 7), (256, 1024), (32, 64, 1000)]
NAMES = ("y", "dx", "dweight", "dbias")


def by_torch(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = F.relu(F.batch_norm(leaves[0], None, None, *leaves[1:], training=True))
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def by_kernel(kernel: object, x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    options = {"eps": 1e-5, "activation": "relu"}
    y, mean, variance = kernel.batch_norm_forward(x, weight, bias, **options)
    return [y, *kernel.batch_norm_backward(dy, x, mean, variance, weight, bias, **options)[:3]]


def errors(found: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    # Where the last digit decides about ReLU's kink, whole gradients come and go: leave those out.
    near = (exact[0] < 1e-5) & (exact[0] > -1e-5) & ((found[0] > 0) != (exact[0] > 0))
    result = {}
    for name, ours, theirs in zip(NAMES, found, exact, strict=True):
        gap = (ours.double() - theirs).abs()
        gap = gap.masked_fill(near, 0) if gap.shape == near.shape else gap
        result[name] = (gap.max() / theirs.abs().max()).item()
    return result


def variance_error(x: Tensor, kernel: object | None) -> float:
    exact = x.double().transpose(0, 1).flatten(1).var(1, correction=0)
    if kernel is None:
        found = torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
        F.batch_norm(x, *found, training=True, momentum=1.0)
        count = x.numel() // x.shape[1]
        return ((found[1].double() * (count - 1) / count - exact).abs() / exact).max().item()
    variance = kernel.batch_norm_forward(x, None, None, eps=1e-5)[2]
    return ((variance.double() - exact).abs() / exact).max().item()


def main() -> None:
    figures: dict[str, object] = {"environment": environment()}
    for shape in SHAPES:
        for last in (False, True) if len(shape) == 4 else (False,):
            torch.manual_seed(0)
            x, dy = torch.randn(shape) + 0.5, torch.randn(shape)
            far = torch.randn(shape) + 4096
            if last:
                x, dy, far = (t.to(memory_format=torch.channels_last) for t in (x, dy, far))
            weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
            exact = by_kernel(reference, *(t.double() for t in (x, dy, weight, bias)))
            row = {
                "bnkit": errors(by_kernel(core, x, dy, weight, bias), exact),
                "torch": errors(by_torch(x, dy, weight, bias), exact),
                "variance at mean 4096": {
                    "bnkit": variance_error(far, core),
                    "torch": variance_error(far, None),
                },
            }
            name = f"{'x'.join(map(str, shape))}, channels {'last' if last else 'first'}"
            figures[name] = row
            print(name, json.dumps(row), flush=True)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
