"""What the harness of `bnkit compare` costs: against a loop by hand, and two processes to one.

    python benchmarks/harness.py

Correctness first: both loops must end with the same weights. Then ratios, interleaved, medians;
nothing else should run on the machine. The figures go to benchmarks/harness.json.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bnkit.experiments import data
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.networks import network
from bnkit.experiments.provenance import environment
from bnkit.experiments.settings import Settings
from bnkit.experiments.tasks import CLASSIFICATION, judge_of
from bnkit.experiments.training import Training, train

STEPS, EVERY, ROUNDS = 1000, 50, 11
FIGURES = Path(__file__).with_suffix(".json")


def draw() -> nn.Module:
    torch.manual_seed(0)
    return network("mlp").build((1, 8, 8), 10, activation="relu")


def batches() -> data.MiniBatches:
    examples = data.load("digits")
    return data.batches(examples.train, 60, generator=torch.Generator().manual_seed(0))


def held_out() -> list[tuple[torch.Tensor, torch.Tensor]]:
    examples = data.load("digits").held_out
    return [(examples.inputs, examples.targets)]


def by_hand(model: nn.Module) -> float:
    """Train with the loop that one would write without bnkit; return its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve, [(test_inputs, test_targets)] = [], held_out()
    began = time.perf_counter()
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
            model.train()
    return time.perf_counter() - began


def by_harness(model: nn.Module) -> float:
    """Train with bnkit's loop; return its seconds, evaluation included as by hand."""
    began = time.perf_counter()
    train(model, batches(), held_out(), Training(0.1, steps=STEPS, evaluate_every=EVERY))
    return time.perf_counter() - began


def by_task(model: nn.Module) -> float:
    """Train as data of one's own are, by the task that they show; return its seconds."""
    judge = judge_of(CLASSIFICATION, None, "cross-entropy", higher_is_better=None)
    began = time.perf_counter()
    how = Training(0.1, steps=STEPS, evaluate_every=EVERY, judge=judge)
    train(model, batches(), held_out(), how)
    return time.perf_counter() - began


def overhead(harness: Callable[[nn.Module], float]) -> dict[str, object]:
    torch.set_num_threads(1)
    models = draw(), draw()
    by_hand(models[0]), harness(models[1])  # the warm-up is the check
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(ours, theirs), "the two loops must do the same"
    ratios = []
    for turn in range(ROUNDS):
        order = (by_hand, harness) if turn % 2 else (harness, by_hand)
        seconds = {run: run(draw()) for run in order}
        ratios.append(seconds[harness] / seconds[by_hand])
    same = [by_hand(draw()) / by_hand(draw()) for _ in range(ROUNDS)]
    return {"ratio": _spread(ratios), "noise: by hand against itself": _spread(same)}


def throughput() -> dict[str, object]:
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(3):
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


def _dated(figures: dict[str, object]) -> dict[str, object]:
    return {**figures, "date": environment()["date"]}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "lowest": round(min(values), 3),
        "highest": round(max(values), 3),
        "runs": len(values),
    }


def main() -> None:
    figures = {
        "environment": environment(),
        "overhead of the harness over a loop by hand": _dated(overhead(by_harness)),
        "overhead of a task over a loop by hand": _dated(overhead(by_task)),
        "throughput of two processes over one": _dated(throughput()),
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
