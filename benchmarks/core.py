"""What the compiled core costs and saves where work is small, and what it takes to have one.

    python benchmarks/core.py [--seconds 4]

- "small networks": a step with batch norm and activation over the step of the same network without
  batch norm, torch's layers and bnkit's in turns (an MLP as in the paper, a convolutional net, a
  1-D convolutional net, a small ResNet; 32 and 64 rows).
- "dispatch": BN + ReLU on (8, 8), forward and backward, where only the call counts.
- "set-up": seconds to build the core anew, and its bytes.

Outputs are compared before anything is timed. One and two threads. Nothing else should run on the
machine; it takes about two minutes. The figures go to benchmarks/core.json. `kernels.py` has the
table of shapes, in training and in inference, `training.py` whole steps of large networks.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnkit
from bnkit.benchmarking.measuring import interleaved
from bnkit.experiments.networks import network
from bnkit.experiments.provenance import environment

FIGURES = Path(__file__).with_suffix(".json")
ROWS = (32, 64)
BUILD = "from bnkit.kernels.build import build; print(build().path.stat().st_size)"


def conv_1d(input_shape: tuple[int, ...], classes: int, *, activation: str) -> nn.Module:
    """Three convolutions over sequences, as for sensor data; `activation` is relu."""
    assert activation == "relu"
    layers = [nn.Conv1d(input_shape[0], 32, 5, padding=2), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv1d(32, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * input_shape[1] // 4, classes))


NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "mlp": (network("mlp").build, (1, 28, 28)),
    "dlology": (network("dlology").build, (1, 28, 28)),
    "1-D conv net": (conv_1d, (3, 128)),
    "resnet": (network("resnet").build, (3, 16, 16)),
}


def price(
    build: Callable[..., nn.Module], shape: tuple[int, ...], rows: int, seconds: float
) -> dict[str, float]:
    """Return the milliseconds of a training step without batch norm, with torch's, with bnkit's."""
    torch.manual_seed(0)
    plain = build(shape, 10, activation="relu")
    x, target = torch.randn(rows, *shape), torch.randint(0, 10, (rows,))
    twin = bnkit.add(plain, x[:4])
    theirs = bnkit.convert(twin, "torch")
    ours = bnkit.accelerate(theirs, x)
    expected, found = (copy.deepcopy(model).train()(x) for model in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    models = {"without": plain, "torch": theirs, "bnkit": ours}
    taken = interleaved(
        {name: training_step(model.train(), x, target) for name, model in models.items()},
        seconds=seconds,
    )
    return {name: 1000 * value for name, value in taken.items()}


def training_step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()

    return run


def dispatch(seconds: float) -> dict[str, float]:
    """Return the microseconds of BN + ReLU on (8, 8), torch's and bnkit's with its guard."""
    x = torch.randn(8, 8, requires_grad=True)
    theirs = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())
    ours = bnkit.BatchNorm1d(8, activation="relu")
    torch.testing.assert_close(ours(x), theirs(x))
    models = {"torch": theirs, "bnkit": ours}
    taken = interleaved(
        {name: (lambda model=model: model(x).sum().backward()) for name, model in models.items()},
        seconds=seconds,
    )
    return {name: 1e6 * value for name, value in taken.items()}


def set_up() -> dict[str, float]:
    """Return what building the core takes, in a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        built = subprocess.run(
            [sys.executable, "-c", BUILD],
            env=os.environ | {"XDG_CACHE_HOME": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
    return {"seconds to build": seconds, "bytes of the core": int(built.stdout.split()[-1])}


def of_threads(threads: int, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(threads)
    networks = {
        f"{name}, {rows} rows": price(build, shape, rows, seconds)
        for name, (build, shape) in NETWORKS.items()
        for rows in ROWS
    }
    return {
        "small networks, milliseconds": networks,
        "step over step without, geometric mean": {
            name: statistics.geometric_mean(row[name] / row["without"] for row in networks.values())
            for name in ("torch", "bnkit")
        },
        "dispatch, microseconds": dispatch(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each network")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"environment": environment(), "set-up": set_up()}
    for threads in (1, 2):
        figures[f"{threads} threads"] = of_threads(threads, arguments.seconds)
    print(json.dumps(figures, indent=1))
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
