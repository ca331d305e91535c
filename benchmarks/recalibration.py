"""What `recalibrate_` costs: against a training-mode forward over the same mini-batches.

    python benchmarks/recalibration.py

Correctness first: the first batch norm's statistics must be those of float64. Then, network by
network and interleaved, the medians of a pass in training mode (with gradients recorded and
without), of torch's `update_bn` and of `recalibrate_`; nothing else should run on the machine. The
figures go to benchmarks/recalibration.json.
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
from torch.optim.swa_utils import update_bn

from bnkit.experiments.provenance import environment
from bnkit.recalibration import plan_recalibration, recalibrate_

FIGURES = Path(__file__).with_suffix(".json")
ROUNDS = 7
BATCHES = 3


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He et al. 2016, figure 5)."""

    def __init__(self, features: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *unit(features, width, 1),
            *unit(width, width, 3, stride=stride),
            *unit(width, 4 * width, 1)[:2],
        )
        same = features == 4 * width and stride == 1
        projection = unit(features, 4 * width, 1, stride=stride)[:2]
        self.skip = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def unit(
    features: int, out: int, size: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(features, out, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def resnet50() -> nn.Module:
    blocks, features = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(features, width, stride if index == 0 else 1))
            features = 4 * width
    return nn.Sequential(*unit(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1), *blocks)


def separable() -> nn.Module:
    """Depthwise and pointwise convs, in which batch norm takes a large part of the time."""
    layers: list[nn.Module] = unit(3, 32, 3, stride=2)
    for features, out, stride in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2)):
        layers += unit(features, features, 3, stride=stride, groups=features)
        layers += unit(features, out, 1)
    return nn.Sequential(*layers)


def vgg() -> nn.Module:
    return nn.Sequential(
        *(*unit(3, 64, 3), *unit(64, 64, 3), nn.MaxPool2d(2)),
        *(*unit(64, 128, 3), *unit(128, 128, 3), nn.MaxPool2d(2)),
    )


def dense() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers)


def batch_norm_alone() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50, 224": (resnet50, (8, 3, 224, 224)),
    "VGG, two stages, 112": (vgg, (8, 3, 112, 112)),
    "separable convs, 224": (separable, (8, 3, 224, 224)),
    "batch norm and ReLU alone, 56": (batch_norm_alone, (16, 64, 56, 56)),
    "dense, 512 features": (dense, (256, 512)),
}


def check(model: nn.Module, batches: list[Tensor]) -> None:
    plan = plan_recalibration(model, batches, progress=False)
    first = plan.layers[0].layer
    inputs: list[Tensor] = []
    hook = model.get_submodule(first).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].detach())
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    hook.remove()
    channels = torch.cat(inputs).double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(plan.new[first].mean, channels.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plan.new[first].variance, channels.var(1), rtol=1e-6, atol=0)


def measure(name: str) -> dict[str, Any]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().train()
    batches = [torch.randn(shape) for _ in range(BATCHES)]
    check(model, batches)

    def training() -> None:
        for batch in batches:
            model(batch)

    def training_without_gradients() -> None:
        with torch.no_grad():
            training()

    runs = {
        "training": training,
        "training without gradients": training_without_gradients,
        "update_bn": lambda: update_bn(batches, model),
        "recalibrate_": lambda: recalibrate_(model, batches, progress=False),
    }
    times: dict[str, list[float]] = {run: [] for run in runs}
    for _ in range(ROUNDS + 1):
        for run, go in runs.items():
            start = time.perf_counter()
            go()
            times[run].append(time.perf_counter() - start)
    ratios = [
        [ours / theirs for ours, theirs in zip(times["recalibrate_"], times[run], strict=True)][1:]
        for run in runs
    ]
    return {
        "network": name,
        "mini-batches": f"{BATCHES} of {shape}",
        "milliseconds": {
            run: round(1000 * statistics.median(t[1:]), 2) for run, t in times.items()
        },
        "recalibrate_ / other": {
            run: round(statistics.median(ratio), 3) for run, ratio in zip(runs, ratios, strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NETWORKS, help="one network, nothing kept")
    only = parser.parse_args().only
    rows = []
    for name in [only] if only else NETWORKS:
        rows.append(measure(name))
        print(json.dumps(rows[-1]), flush=True)
    if not only:
        FIGURES.write_text(
            json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
