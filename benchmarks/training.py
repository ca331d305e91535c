"""Whole training steps on the CPU: models in torch eager, accelerated, and without batch norm.

    python benchmarks/training.py [NAME ...]

A step is forward, loss, backward and a step of SGD on a mini-batch of 32. The programs take turns;
the figures are medians. First the accelerated model must give the outputs and gradients of the
plain one. "without" is the same network with an Identity for each batch norm: what a step costs
beyond it is the price of batch norm. The figures go to benchmarks/training.json; the models of the
transformers package are timed where it is installed.
"""

import argparse
import copy
import importlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from networks import densenet_121, mobilenet_v2, resnet_18
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnkit
from bnkit.benchmarking.measuring import interleaved
from bnkit.experiments.networks import dlology
from bnkit.experiments.provenance import environment
from bnkit.kernels import memory
from bnkit.surgery.operations import replace_module

FIGURES = Path(__file__).with_suffix(".json")
BATCH = 32


class Logits(nn.Module):
    """A model of the transformers package as a function from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def dlology_with_batch_norm() -> nn.Module:
    plain = dlology((1, 28, 28), 10, activation="relu")
    return bnkit.add(plain, torch.zeros(2, 1, 28, 28))


def of_transformers(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        kind = {"MobileNetV2": "MobileNetV2", "ResNet-18": "ResNet", "RegNet": "RegNet"}[name]
        small = {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
        config = getattr(transformers, f"{kind}Config")(**(small if kind == "ResNet" else {}))
        if kind == "RegNet":  # the sizes of RegNetY-400MF
            config.update(
                {"hidden_sizes": [48, 104, 208, 440], "depths": [1, 3, 6, 6], "groups_width": 8}
            )
        return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "MobileNetV2 at 96": (mobilenet_v2, (3, 96, 96)),
    "DenseNet-121 at 64": (densenet_121, (3, 64, 64)),
    "ResNet-18 at 64": (resnet_18, (3, 64, 64)),
    "dlology at 28": (dlology_with_batch_norm, (1, 28, 28)),
}
if importlib.util.find_spec("transformers"):
    NETWORKS |= {
        f"transformers' {name} at {side}": (of_transformers(name), (3, side, side))
        for name, side in (("MobileNetV2", 96), ("ResNet-18", 64), ("RegNet", 64))
    }


def measure(
    build: Callable[[], nn.Module], size: tuple[int, ...], *, seconds: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build().train()
    x, target = torch.randn(BATCH, *size), torch.randint(0, 2, (BATCH,))
    fast = bnkit.accelerate(model, x[:4])
    models = {"torch": model, "torch again": copy.deepcopy(model), "bnkit": fast}
    check(model, fast, x, target)
    models["without"] = without_batch_norm(model)
    steps = {name: step(each, x, target) for name, each in models.items()}
    taken = interleaved(steps, seconds=seconds)
    return {
        "milliseconds": {name: 1000 * value for name, value in taken.items()},
        "torch / bnkit": taken["torch"] / taken["bnkit"],
        "torch / itself": taken["torch"] / taken["torch again"],
        "price of batch norm": taken["bnkit"] / taken["without"],
        "price of torch's": taken["torch"] / taken["without"],
        "idle recycled bytes": memory.idle_bytes(),
    }


def without_batch_norm(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, _BatchNorm):
            replace_module(model, path, nn.Identity())
    for p in model.parameters():  # so that nothing grows without batch norm
        p.data.mul_(0.5)
    return model


def step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()

    return run


def check(model: nn.Module, fast: nn.Module, x: Tensor, target: Tensor) -> None:
    found = []
    for each in (copy.deepcopy(model), copy.deepcopy(fast)):
        torch.manual_seed(0)
        y = each(x)
        F.cross_entropy(y, target).backward()
        found.append((y, torch.cat([p.grad.flatten() for p in each.parameters()])))
    for ours, theirs in zip(*found, strict=True):
        error = ((ours - theirs).norm() / theirs.norm()).item()
        # Deep networks in float32 magnify the last digit at the kinks of ReLU.
        assert error < 2e-2, f"the accelerated model is wrong: {error:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each network")
    arguments = parser.parse_args()
    names = arguments.names or list(NETWORKS)
    kept = json.loads(FIGURES.read_text())["networks"] if FIGURES.exists() else {}
    for name in names:
        start = time.perf_counter()
        kept[name] = measure(*NETWORKS[name], seconds=arguments.seconds)
        print(f"{time.perf_counter() - start:.0f} s  {name}: {json.dumps(kept[name])}", flush=True)
    prices = [row["price of batch norm"] for row in kept.values()]
    figures = {
        "environment": environment() | {"threads": str(torch.get_num_threads())},
        "price of batch norm, geometric mean": statistics.geometric_mean(prices),
        "networks": kept,
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
