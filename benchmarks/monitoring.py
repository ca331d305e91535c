"""What share of a training step `bnkit.Monitor` takes at its default, every hundredth step.

    python benchmarks/monitoring.py

Correctness first: training with it must end with the same weights. A record is rare, so blocks of
ten steps are timed, turn by turn: without it, with a record in each block, and with its hooks
alone. With medians of the blocks b₀, b₁ and b₂ the share is (b₁ − b₀ + 9 (b₂ − b₀)) / 10 b₀: a
hundred steps have one record, and its hooks in all others. One thread, whose own time is taken, so
that what else runs on the machine counts for little. The figures go to benchmarks/monitoring.json.
"""

import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.experiments.networks import network
from bnkit.experiments.provenance import environment
from bnkit.monitoring import Monitor

BLOCK, SECONDS, NEVER = 10, 60, 10**9
FIGURES = Path(__file__).with_suffix(".json")
NETWORKS = {
    "mlp of 784-100-100-100-10, batch 60": ("mlp", 60),
    "resnet of 14 layers, batch 32": ("resnet", 32),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    plain = network(name).build((1, 28, 28), 10, activation="relu")
    return bnkit.add(plain, torch.randn(2, 1, 28, 28)).train()


def training(model: nn.Module, batch: int) -> Callable[[], float]:
    """Return what trains for a block of steps and returns its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, 28, 28, generator=generator)
    target = torch.randint(0, 10, (batch,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()

    def block() -> float:
        step()  # what a Monitor was made with is out of the caches afterwards
        began = time.process_time()
        for _ in range(BLOCK):
            step()
        return time.process_time() - began

    return block


def check(name: str, batch: int) -> None:
    """Refuse to time what does not do the same."""
    plain, watched = build(name), build(name)
    training(plain, batch)()
    with Monitor(watched, every=2):
        training(watched, batch)()
    for ours, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), "training must be the same with the Monitor"


def measure(name: str, batch: int) -> dict[str, float]:
    check(name, batch)
    model = build(name)  # one for all, so that all have the same memory
    block = training(model, batch)
    seconds: dict[str, list[float]] = {"plain": [], "recorded": [], "hooked": [], "again": []}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for kind in sorted(seconds, key=lambda _: random.random()):
            with contextlib.ExitStack() as monitors:
                if kind in ("recorded", "hooked"):
                    monitor = monitors.enter_context(Monitor(model, every=BLOCK))
                    # the first step that is timed is recorded, or nothing is
                    monitor.steps, monitor.every = (-1, BLOCK) if kind == "recorded" else (1, NEVER)
                seconds[kind].append(block())
    plain, recorded, hooked, again = map(statistics.median, seconds.values())
    return {
        "milliseconds of a step": round(1000 * plain / BLOCK, 3),
        "milliseconds of a record": round(1000 * (recorded - hooked), 3),
        "share of step time at every=100": round(
            (recorded - plain + 9 * (hooked - plain)) / (10 * plain), 4
        ),
        "share of the hooks alone": round(hooked / plain - 1, 4),
        "noise: without it against itself": round(again / plain - 1, 4),
        "blocks": len(seconds["plain"]),
    }


def main() -> None:
    torch.set_num_threads(1)
    figures = {
        "environment": environment(),
        **{title: measure(*of_network) for title, of_network in NETWORKS.items()},
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
