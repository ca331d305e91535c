"""What the loop of `bnkit compare` costs: against one by hand, and two processes to one.

    python benchmarks/harness.py [--only overhead] [--rounds 11]

Correctness first: both loops must end with the same weights. Then ratios, interleaved, medians;
nothing else should run on the machine. The figures go to benchmarks/harness.json, where those of
the part that was not asked for stay.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnkit.experiments import data
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.networks import network
from bnkit.experiments.own_loop import OwnLoop, RunningTrial
from bnkit.experiments.provenance import environment
from bnkit.experiments.settings import Settings
from bnkit.experiments.tasks import CLASSIFICATION, judge_of
from bnkit.experiments.training import Training, train

STEPS, EVERY = 1000, 50
FIGURES = Path(__file__).with_suffix(".json")

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def draw() -> nn.Module:
    torch.manual_seed(0)
    return network("mlp").build((1, 8, 8), 10, activation="relu")


def batches() -> data.MiniBatches:
    examples = data.load("digits")
    return data.batches(examples.train, 60, generator=torch.Generator().manual_seed(0))


def held_out() -> Batches:
    examples = data.load("digits").held_out
    return [(examples.inputs, examples.targets)]


def by_hand(model: nn.Module, report: Callable[..., object] = lambda *_, **__: None) -> None:
    """Train with the loop that one would write without bnkit."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve, [(test_inputs, test_targets)] = [], held_out()
    for step, (inputs, targets) in zip(range(1, STEPS + 1), batches(), strict=False):
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            model.eval()
            with torch.no_grad():
                accuracy = (model(test_inputs).argmax(1) == test_targets).float().mean().item()
            curve.append((step, loss.item(), accuracy))
            report(step, loss=loss, accuracy=accuracy)
            model.train()


def of_named_data(model: nn.Module) -> None:
    """Train with bnkit's loop, as digits and MNIST are."""
    train(model, batches(), held_out(), Training(0.1, steps=STEPS, evaluate_every=EVERY))


def of_own_data(model: nn.Module) -> None:
    """Train as data of one's own are, by the task that they show."""
    judge = judge_of(CLASSIFICATION, None, "cross-entropy", higher_is_better=None)
    how = Training(0.1, steps=STEPS, evaluate_every=EVERY, judge=judge)
    train(model, batches(), held_out(), how)


def own_loop(model: nn.Module) -> None:
    """Train by a loop of one's own, which reports."""
    loop = OwnLoop(by_hand, steps=STEPS)
    trial = RunningTrial(loop, "plain", 0, {"learning_rate": 0.1})
    by_hand(model, trial.report)


LOOPS = {
    "by hand again": by_hand,  # how far its ratio is from 1 is the noise of the others
    "built in, named data": of_named_data,
    "built in, data of one's own": of_own_data,
    "by hand, with trial.report": own_loop,
}


def overhead(rounds: int) -> dict[str, Any]:
    """Return the seconds of each loop divided by those of the one by hand."""
    torch.set_num_threads(1)
    by_hand(expected := draw())
    for loop in LOOPS.values():  # the warm-up is the check
        loop(found := draw())
        for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs), "the loops must do the same"
    ratios: dict[str, list[float]] = {name: [] for name in LOOPS}
    for turn in range(rounds):
        order = list(LOOPS) if turn % 2 else list(LOOPS)[::-1]
        for name in order:
            # Before and after, so that a machine that grows slower or faster meanwhile counts out.
            before, ours, after = (seconds(each) for each in (by_hand, LOOPS[name], by_hand))
            ratios[name].append(2 * ours / (before + after))
    return {name: _spread(values) for name, values in ratios.items()}


def seconds(loop: Callable[[nn.Module], None]) -> float:
    """Return what training one network by this loop takes."""
    model = draw()
    began = time.perf_counter()
    loop(model)
    return time.perf_counter() - began


def throughput(rounds: int) -> dict[str, Any]:
    """Return the trials per second of two processes divided by those of one."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            rates = {
                jobs: _trials_per_second(jobs, Path(folder) / f"{turn}-{jobs}") for jobs in (1, 2)
            }
            ratios.append(rates[2] / rates[1])
    return {"ratio": _spread(ratios)}


def _trials_per_second(jobs: int, folder: Path) -> float:
    """Return trials per second once the processes have started and imported torch."""
    warm = Settings(learning_rates=[0.1], activations=["relu"], seeds=2, steps=50)
    plan_comparison("mlp", "digits", settings=warm, out=folder / "warm").run(
        jobs=jobs, progress=False
    )
    settings = Settings(learning_rates=[0.1], activations=["relu"], seeds=30, steps=STEPS)
    sweep = plan_comparison("mlp", "digits", settings=settings, out=folder)
    began = time.perf_counter()
    comparison = sweep.run(jobs=jobs, progress=False)
    assert all(trial.outcome == "finished" for trial in comparison.trials)
    return len(comparison.trials) / (time.perf_counter() - began)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "lowest": round(min(values), 3),
        "highest": round(max(values), 3),
        "runs": len(values),
    }


PARTS = {
    "overhead": ("seconds over those of a loop by hand", overhead, 11),
    "throughput": ("trials a second of two processes over one", throughput, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one part; the figures of the other stay")
    parser.add_argument("--rounds", type=int, help="by default 11 of overhead, 3 of throughput")
    options = parser.parse_args()
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    found = {title: kept[title] for title, *_ in PARTS.values() if title in kept}
    parts = [PARTS[options.only]] if options.only else PARTS.values()
    for title, measure, rounds in parts:
        figures = measure(options.rounds or rounds)
        found[title] = {**figures, "environment": environment()}
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
