"""Inference with batch norms folded: bnkit's fold against unfolded eval and torch's own fusion.

    python benchmarks/folding.py
    python benchmarks/folding.py --quick     # small images, few rounds, nothing kept

Correctness first: every folded network must compute what the unfolded one does in float64. Then
the medians of interleaved rounds, in eval mode without gradients; nothing else should run on the
machine. torch.nn.utils.fusion is told the pairs of conv and batch norm by hand, torch.fx finds them
by symbolic tracing. The figures go to benchmarks/folding.json.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fuse_by_tracing
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bnkit.experiments.provenance import environment
from bnkit.surgery.folding import fold, plan_folding

FIGURES = Path(__file__).with_suffix(".json")
THREADS = 1
ROUNDS, QUICK_ROUNDS = 15, 3
TOLERANCE = 1e-4


class ConvNorm(nn.Module):
    """A conv without bias and its batch norm, perhaps with a ReLU."""

    def __init__(self, features_in: int, features_out: int, size: int, **options: int) -> None:
        super().__init__()
        bends = options.pop("bends", 1)
        self.conv = nn.Conv2d(
            features_in, features_out, size, padding=size // 2, bias=False, **options
        )
        self.norm = nn.BatchNorm2d(features_out)
        self.act = nn.ReLU() if bends else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """He et al. 2015, figure 5, right."""

    def __init__(self, features: int, inner: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(features, inner, 1),
            ConvNorm(inner, inner, 3, stride=stride),
            ConvNorm(inner, 4 * inner, 1, bends=0),
        )
        same = features == 4 * inner and stride == 1
        self.shortcut = (
            nn.Identity() if same else ConvNorm(features, 4 * inner, 1, stride=stride, bends=0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Inverted(nn.Module):
    """Sandler et al. 2018, figure 4: wide, depthwise, narrow."""

    def __init__(self, features: int, made: int, stride: int, width: int = 6) -> None:
        super().__init__()
        wide, self.adds = features * width, stride == 1 and features == made
        self.body = nn.Sequential(
            ConvNorm(features, wide, 1),
            ConvNorm(wide, wide, 3, stride=stride, groups=wide),
            ConvNorm(wide, made, 1, bends=0),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def resnet_50() -> nn.Module:
    """Return the 53 convs and batch norms of ResNet-50."""
    blocks, features = [], 64
    for stage, (inner, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for number in range(count):
            blocks.append(Bottleneck(features, inner, 2 if stage and not number else 1))
            features = 4 * inner
    stem = [ConvNorm(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10))


def mobilenet_v2() -> nn.Module:
    """Return the layers of MobileNetV2, table 2 of the paper."""
    rows = [(24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]
    blocks: list[nn.Module] = [ConvNorm(3, 32, 3, stride=2), Inverted(32, 16, 1, width=1)]
    features = 16
    for made, count, stride in rows:
        for number in range(count):
            blocks.append(Inverted(features, made, 1 if number else stride))
            features = made
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10)]
    return nn.Sequential(*blocks, ConvNorm(320, 1280, 1), *head)


def vgg_16() -> nn.Module:
    """Return the convs of VGG-16 with batch norm."""
    layers: list[nn.Module] = []
    features = 3
    for made, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers.append(ConvNorm(features, made, 3))
            features = made
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


NETWORKS = {"ResNet-50": resnet_50, "MobileNetV2": mobilenet_v2, "VGG-16": vgg_16}


def fuse_by_hand(model: nn.Module) -> nn.Module:
    """Return a copy fused by torch.nn.utils.fusion, as libraries do it for layers they know."""
    fused = copy.deepcopy(model)
    for part in fused.modules():
        if isinstance(part, ConvNorm):
            part.conv, part.norm = fuse_conv_bn_eval(part.conv, part.norm), nn.Identity()
    return fused


def drawn(build: Callable[[], nn.Module], side: int) -> nn.Module:
    """Return the network with the statistics of one mini-batch, in eval mode."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, side, side))
    return model.eval()


def check(ways: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Return the error max|a − b| / max|a| of each way, against unfolded eval in float64."""
    exact = copy.deepcopy(ways["eval"]).double()(x.double())
    errors = {
        name: ((model(x) - exact).abs().max() / exact.abs().max()).item()
        for name, model in ways.items()
    }
    wrong = {name: error for name, error in errors.items() if error > TOLERANCE}
    assert not wrong, f"these compute something else: {wrong}"
    return errors


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, turn by turn in changing order, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        names = list(runs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def measure(name: str, batch: int, side: int, rounds: int) -> dict[str, object]:
    model, x = drawn(NETWORKS[name], side), torch.randn(batch, 3, side, side)
    began = time.perf_counter()
    plan = plan_folding(model, x)
    planning = time.perf_counter() - began
    assert not plan.left_alone, "every batch norm here follows a conv"
    ways = {
        "eval": model,
        "bnkit": fold(model, x),
        "torch.nn.utils.fusion": fuse_by_hand(model),
        "torch.fx": fuse_by_tracing(model),
    }
    errors = check(ways, x)
    runs = {way: lambda network=network: network(x) for way, network in ways.items()}
    seconds = medians({**runs, "eval again": runs["eval"]}, rounds)
    return {
        "network": name,
        "batch norms": len(plan.edits),
        "batch": batch,
        "side": side,
        "milliseconds": {way: round(1000 * value, 2) for way, value in seconds.items()},
        "error": {way: float(f"{error:.1e}") for way, error in errors.items()},
        "eval / bnkit": round(seconds["eval"] / seconds["bnkit"], 3),
        "torch.nn.utils.fusion / bnkit": round(
            seconds["torch.nn.utils.fusion"] / seconds["bnkit"], 3
        ),
        "torch.fx / bnkit": round(seconds["torch.fx"] / seconds["bnkit"], 3),
        "noise: eval / eval again": round(seconds["eval"] / seconds["eval again"], 3),
        "planning with proof / eval": round(planning / seconds["eval"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, nothing kept")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    side, rounds = (64, QUICK_ROUNDS) if quick else (224, ROUNDS)
    rows = []
    with torch.no_grad():
        for name in NETWORKS:
            for batch in (1, 8):
                rows.append(measure(name, batch, side, rounds))
                print(json.dumps(rows[-1]), flush=True)
    if not quick:
        figures = {"environment": environment(), "threads": THREADS, "rows": rows}
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
