"""The most memory that a training step holds at once: torch, and bnkit fused.

    python benchmarks/memory.py

Six blocks of convolution, batch norm and ReLU (and the same with residual sums), each variant in a
process of its own; the figure is the growth of the process's largest resident size, in tensors of
the size of one feature map. Nothing is recycled meanwhile: what bnkit keeps idle beyond it, of a
further step, is reported apart. The figures go to benchmarks/memory.json.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bnkit.benchmarking.cases import Case
from bnkit.experiments.provenance import environment
from bnkit.kernels import memory
from bnkit.layers import BatchNorm2d

FIGURES = Path(__file__).with_suffix(".json")
CASE = Case((32, 64, 112, 112))
BLOCKS = 6


class Plain(nn.Module):
    """Convolution, torch's batch norm, perhaps a residual sum, ReLU."""

    def __init__(self, *, in_place: bool, residual: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.relu, self.in_place, self.residual = nn.ReLU(inplace=in_place), in_place, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.residual:
            y = y.add_(x) if self.in_place else y + x
        return self.relu(y)


class Fused(nn.Module):
    """The same by bnkit's layer."""

    def __init__(self, *, residual: bool) -> None:
        super().__init__()
        self.conv, self.residual = nn.Conv2d(64, 64, 1, bias=False), residual
        self.norm = BatchNorm2d(64, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), x if self.residual else None)


def peak(build: Callable[[], nn.Module]) -> dict[str, float]:
    """Return the growth of the resident size in one step, and what is idle after a second one."""
    torch.set_num_threads(1)
    model = nn.Sequential(*(build() for _ in range(BLOCKS)))
    x = torch.randn(CASE.shape)
    small = torch.randn(4, 64, 112, 112)
    model(small).sum().backward()  # compiles, and allocates what stays
    memory.release()
    limit = memory.idle_limit()
    memory.limit_idle_bytes(0)
    before = resident()
    y = model(x)
    forward = resident() - before
    y.mean().backward()
    step = resident() - before
    del y
    memory.limit_idle_bytes(limit)
    model(x).mean().backward()
    found = {"forward": forward, "step": step, "idle": memory.idle_bytes()}
    return {f"{what}, maps": round(size / CASE.bytes, 2) for what, size in found.items()}


def resident() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def variants(*, residual: bool) -> dict[str, Callable[[], nn.Module]]:
    return {
        "torch, ReLU in place": lambda: Plain(in_place=True, residual=residual),
        "torch, ReLU out of place": lambda: Plain(in_place=False, residual=residual),
        "bnkit": lambda: Fused(residual=residual),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, help="one variant only, in this process")
    one = parser.parse_args().one
    if one:
        print(json.dumps(peak(variants(residual=one[0] == "residual")[one[1]])))
        return
    figures: dict[str, object] = {"environment": environment()}
    for kind in ("chain", "residual"):
        for name in variants(residual=False):
            command = [sys.executable, __file__, "--one", kind, name]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures[f"{kind}: {name}"] = json.loads(answer.stdout)
            print(kind, name, answer.stdout.strip(), flush=True)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
