"""Batch norm inserted into trained networks, then fine-tuned with it and without it.

    python benchmarks/finetuning.py [--data-dir FOLDER] [--only NETWORK]

A VGG and a residual network, trained on Fashion-MNIST without batch norm, get it by `bnkit.insert`;
the accuracies before and after must be equal. From this one point both sides are fine-tuned on the
same mini-batches, at several learning rates and over several seeds. For the VGG the published
insertion into VGG-16 (fast.ai: dense layers, after the activation, weight = variance) is made
too, beside ours in the same places. The figures go to benchmarks/finetuning.json, their table into
docs/insert.md.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnkit
from bnkit.dataflow import duplicate
from bnkit.experiments.data import Data, Examples, batches, load
from bnkit.experiments.initialisation import initialise_
from bnkit.experiments.networks import network
from bnkit.experiments.provenance import environment
from bnkit.experiments.training import Training, train
from bnkit.observation import evaluating
from bnkit.surgery.insertion import plan_insertion

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "insert.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"
BESIDE_THE_REPOSITORY = ROOT.parent / "shared" / "data"

BATCH = 100
STEPS = {"vgg": 1500, "resnet": 1200}  # of 550 an epoch: one to two minutes on one thread
TRAINING_RATE = 1e-3  # of Adam
FINE_TUNING_STEPS = 200
FINE_TUNING_RATES = (1e-3, 1e-2)
SEEDS = 3
STATISTICS = 10_000  # images
SIDES = ("without", "with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = BESIDE_THE_REPOSITORY if BESIDE_THE_REPOSITORY.exists() else None
    parser.add_argument("--data-dir", type=Path, default=beside, help="folder of the data's files")
    parser.add_argument("--only", choices=STEPS, help="one network, nothing kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load("fashion-mnist", folder=options.data_dir)
    networks = {}
    for name in [options.only] if options.only else STEPS:
        networks[name] = measure(name, data)
        print(json.dumps({name: networks[name]}), flush=True)
    figures = {"environment": environment(), "settings": settings(), "networks": networks}
    print(table(figures))
    if not options.only:
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        write_table(figures)


def settings() -> dict[str, Any]:
    return {
        "batch size": BATCH,
        "training": f"Adam at {TRAINING_RATE:g}, He's initial weights",
        "training steps": STEPS,
        "images for the statistics": STATISTICS,
        "fine-tuning": "Adam",
        "fine-tuning steps": FINE_TUNING_STEPS,
        "seeds": SEEDS,
    }


def measure(name: str, data: Data) -> dict[str, Any]:
    began = time.perf_counter()
    trained = trained_network(name, data)
    seconds = time.perf_counter() - began
    plan = plan_insertion(trained, statistics_batches(data))
    normalised = plan.apply(trained)
    return {
        "layers": len(plan.edits),
        "seconds of training": round(seconds, 1),
        "before": scores(trained, data.test),
        "inserted": scores(normalised, data.test),
        "predictions that differ": differing_predictions(trained, normalised, data.test),
        "proof": plan.to_json()["proof"],
        "in training mode": plan.to_json()["in_training_mode"],
        "published insertion": published_insertion(trained, data) if name == "vgg" else None,
        "fine-tuned": {
            f"{rate:g}": {
                side: [fine_tuned(model, data, rate, seed) for seed in range(SEEDS)]
                for side, model in zip(SIDES, (trained, normalised), strict=True)
            }
            for rate in FINE_TUNING_RATES
        },
    }


def trained_network(name: str, data: Data) -> nn.Module:
    torch.manual_seed(0)
    generator = Generator().manual_seed(0)
    model = network(name).build(data.input_shape, data.classes, activation="relu")
    initialise_(model, "he", generator=generator)
    training = Training(TRAINING_RATE, "adam", steps=STEPS[name], evaluate_every=STEPS[name])
    mini_batches = batches(data.train, BATCH, generator=generator)
    assert train(model, mini_batches, in_batches(data.held_out)[:1], training).outcome == "finished"
    return model


def fine_tuned(start: nn.Module, data: Data, rate: float, seed: int) -> dict[str, float]:
    model = duplicate(start)
    training = Training(rate, "adam", steps=FINE_TUNING_STEPS, evaluate_every=FINE_TUNING_STEPS)
    mini_batches = batches(data.train, BATCH, generator=Generator().manual_seed(100 + seed))
    train(model, mini_batches, in_batches(data.held_out)[:1], training)
    return scores(model, data.test)


def published_insertion(trained: nn.Module, data: Data) -> dict[str, Any]:
    """Return the scores of batch norm after the dense activations, by our rule and by theirs."""
    ours = bnkit.insert(
        trained,
        statistics_batches(data),
        placement="after_activation",
        where=lambda _, layer: isinstance(layer, nn.Linear),
    )
    theirs = duplicate(ours)
    layers = [layer for layer in theirs.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        layer.weight.data.copy_(layer.running_var)  # and not sqrt(running_var + eps)
    return {
        "layers": len(layers),
        "weight = sqrt(variance + eps)": scores(ours, data.test),
        "weight = variance": scores(theirs, data.test),
    }


def in_batches(examples: Examples) -> list[tuple[Tensor, Tensor]]:
    return list(zip(examples.inputs.split(500), examples.targets.split(500), strict=True))


def statistics_batches(data: Data) -> list[Tensor]:
    return list(data.train.inputs[:STATISTICS].split(BATCH))


@torch.no_grad()
def outputs_of(model: nn.Module, examples: Examples) -> Tensor:
    with evaluating(model):
        return torch.cat([model(inputs) for inputs, _ in in_batches(examples)])


def scores(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Return accuracy in percent and mean cross-entropy, in eval mode."""
    outputs = outputs_of(model, examples)
    right = (outputs.argmax(1) == examples.targets).sum().item()
    loss = F.cross_entropy(outputs, examples.targets).item()
    return {"accuracy": round(100 * right / len(examples), 2), "loss": round(loss, 4)}


def differing_predictions(one: nn.Module, other: nn.Module, examples: Examples) -> int:
    predictions = [outputs_of(model, examples).argmax(1) for model in (one, other)]
    return int((predictions[0] != predictions[1]).sum())


def write_table(figures: dict[str, Any]) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(figures) + END + rest.partition(END)[2])


def table(figures: dict[str, Any]) -> str:
    """Return the Markdown table of test accuracies, in percent."""
    columns = (
        "network",
        "before",
        "after insertion",
        "Adam at",
        *("fine-tuned " + s for s in SIDES),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, found in figures["networks"].items():
        for rate, sides in found["fine-tuned"].items():
            own = [spread([run["accuracy"] for run in sides[side]]) for side in SIDES]
            start = [f"{found[part]['accuracy']:.2f}" for part in ("before", "inserted")]
            lines.append(f"| {' | '.join([name, *start, rate, *own])} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
