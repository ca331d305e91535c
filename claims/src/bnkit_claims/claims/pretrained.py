"""Claim 14: batch norm can be put into a trained network, which then learns further."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.experiments.loaders import Loaders
from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit.experiments.training import Batches, Training, accuracy, train
from bnkit.internals import AnyBatchNorm
from bnkit.observation import evaluating
from bnkit.surgery import insert
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dots, Lines, Rule, accuracy_chart, band, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, points
from bnkit_claims.core.trainings import experiment_for

ROOT, VARIANCE, PLAIN = "root", "variance", "plain"
ROUNDING = 1e-4  # relative, in float32: an output that moves by less is the same


@dataclass(frozen=True, kw_only=True)
class Pretrained(ClaimSettings):
    """How the plain network is trained first, and how each of the three is trained further.

    `population` counts the training mini-batches whose statistics the inserted layers get.
    """

    network: str = "vgg"
    init: str = "he"  # so that a deep plain network trains
    optimizer: str = "adam"  # as fast.ai fine-tuned
    learning_rate: float = 3e-3
    batch_size: int = 64
    steps: int = 300
    population: int = 20
    fine_tuning_rate: float = 1e-4
    fine_tuning_steps: int = 66  # three epochs of the digits
    evaluate_every: int = 11
    seeds: int = 4


def run(settings: Pretrained, run_cases: RunCases = in_turn) -> Evidence:
    """Return what insertion by either rule changes, and where fine-tuning leads afterwards."""
    return judge(run_cases(insertion, settings, list(range(settings.seeds))))


def insertion(settings: Pretrained, seed: int) -> dict[str, Any]:
    """Return loss and accuracy of a trained network, after insertion, and after fine-tuning.

    Batch norm goes after the activations of the hidden dense layers, as fast.ai put it; the
    weights are the root of the variance, or, as in the published recipe, the variance. The plain
    network is trained further too. `moved` is the largest change of a test output ÷ the largest.
    """
    drawn = experiment_for(settings, settings.network, activations=["relu"])
    model, loaders = drawn.network("plain", "relu", seed), drawn.loaders(seed)
    plan = Training(
        settings.learning_rate,
        optimizer=settings.optimizer,
        steps=settings.steps,
        evaluate_every=settings.steps,
    )
    train(model, loaders.train, loaders.held_out, plan)
    population = list(islice(drawn.loaders(seed).train, settings.population))
    root = with_batch_norm(model, population)
    networks = {PLAIN: model, ROOT: root, VARIANCE: by_variance(root)}
    before = outputs(model, loaders.test)
    found = {
        name: {
            "moved": float((outputs(network, loaders.test) - before).abs().max())
            / float(before.abs().max()),
            "before": _measured(network, loaders),
            **fine_tuned(settings, network, drawn.loaders(seed + 1)),
            "after": _measured(network, loaders),
        }
        for name, network in networks.items()
    }
    return {"seed": seed, **found}


def with_batch_norm(model: nn.Module, population: Batches) -> nn.Module:
    """Return a copy with batch norm after the activation of each hidden dense layer.

    It is `bnkit.insert`, so the weight is sqrt(running_var + eps) and the bias running_mean.
    """
    return insert(
        model,
        population,
        where=lambda _, layer: isinstance(layer, nn.Linear),
        placement="after_activation",
    )


@torch.no_grad()
def by_variance(model: nn.Module) -> nn.Module:
    """Return a copy in which the weight of each batch norm is its running variance.

    So fast.ai's recipe set them: [gamma, beta, mean, variance] = [var, mean, mean, var].

    >>> layer = nn.BatchNorm1d(1)
    >>> _ = layer.running_var.fill_(4.0)
    >>> by_variance(layer).weight.item()
    4.0
    """
    changed = duplicate(model)
    for layer in changed.modules():
        if isinstance(layer, AnyBatchNorm):
            layer.weight.copy_(layer.get_buffer("running_var"))
    return changed


def fine_tuned(settings: Pretrained, network: nn.Module, loaders: Loaders) -> dict[str, Any]:
    """Return the accuracy along the fine-tuning of `network`, which is trained in place."""
    plan = Training(
        settings.fine_tuning_rate,
        optimizer=settings.optimizer,
        steps=settings.fine_tuning_steps,
        evaluate_every=settings.evaluate_every,
    )
    curve = train(network, loaders.train, loaders.held_out, plan).curve
    return {
        "steps": list(curve.steps),
        "accuracies": [each for each in curve.metric if each is not None],
    }


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return what the model makes of all inputs in eval mode."""
    with evaluating(model):
        return torch.cat([model(inputs) for inputs, _ in batches])


def _measured(model: nn.Module, loaders: Loaders) -> dict[str, float]:
    """Return loss and accuracy on the test set, in eval mode."""
    targets = torch.cat([targets for _, targets in loaders.test])
    loss = F.cross_entropy(outputs(model, loaders.test), targets)
    with evaluating(model):
        return {"loss": float(loss), "accuracy": accuracy(model, loaders.test)}


def judge(found: Records) -> Evidence:
    """Return the verdict: which insertion changes nothing, and what fine-tuning gains."""
    gain = _gain(found, lambda row: row[PLAIN]["before"], lambda row: row[ROOT]["after"])
    lead = _gain(found, lambda row: row[PLAIN]["after"], lambda row: row[ROOT]["after"])
    return Evidence(
        headline=_headline(found, gain, lead),
        parts=(
            _unmoved("no change, inserted with the root of the variance", found, ROOT),
            _unmoved("no change, inserted with the variance, as published", found, VARIANCE),
            _higher("a higher accuracy after fine-tuning than before", gain),
            _higher("a higher accuracy than fine-tuning without batch norm", lead),
        ),
        beside=(_by_variance(found, "loss", ".3f"), _by_variance(found, "accuracy", ".2%")),
        notes=_against(found),
        figures=(_losses(found), _curves(found)),
        details=tuple(
            {
                "seed": row["seed"],
                "network": name,
                "outputs moved": row[name]["moved"],
                **{
                    f"{what} {when} fine-tuning": row[name][when][what]
                    for when in ("before", "after")
                    for what in ("loss", "accuracy")
                },
            }
            for row in found
            for name in (PLAIN, ROOT, VARIANCE)
        ),
    )


def _same(found: Records, name: str) -> bool | None:
    """Return whether no output moves with any seed; that all move with every seed is a no."""
    same = [row[name]["moved"] < ROUNDING for row in found]
    return None if len(same) < 3 or (any(same) and not all(same)) else all(same)


def _gain(found: Records, earlier: Any, later: Any) -> PairedDifference:
    return paired_difference((earlier(row)["accuracy"], later(row)["accuracy"]) for row in found)


def _higher(what: str, gain: PairedDifference) -> Part:
    return Part(what, points(gain), beyond(gain, bar=0, negligible=0.001))


def _unmoved(what: str, found: Records, name: str) -> Part:
    moved = [float(row[name]["moved"]) for row in found]
    figures = f"outputs move by {min(moved):.2g} to {max(moved):.2g} times the largest, over seeds"
    return Part(what, figures, _same(found, name))


def _by_variance(found: Records, what: str, form: str) -> Beside:
    plain, variance = (format(_of(found, name, what), form) for name in (PLAIN, VARIANCE))
    return Beside(f"test {what} on insertion with the variance", f"from {plain} to {variance}")


def _against(found: Records) -> tuple[str, ...]:
    note = (
        "Contrary to its source, the published recipe, with the variance as weight, changes what "
        "the network computes."
    )
    return (note,) if _same(found, VARIANCE) is False else ()


def _headline(found: Records, gain: PairedDifference, lead: PairedDifference) -> str:
    outputs = {True: "changes no output", False: "changes outputs", None: "may change outputs"}
    tuned, more = (100 * (each.difference or 0) for each in (gain, lead))
    plain, variance = (100 * _of(found, name, "accuracy") for name in (PLAIN, VARIANCE))
    return (
        "Inserted with the root of the variance as weight, batch norm "
        f"{outputs[_same(found, ROOT)]}, and fine-tuning adds {tuned:+z.1f} points "
        f"({tuned - more:+z.1f} without it); with the variance, as published, it changes accuracy "
        f"from {plain:.1f} to {variance:.1f}%."
    )


def _of(found: Records, name: str, what: str, when: str = "before") -> float:
    return median(float(row[name][when][what]) for row in found)


LABELS = {PLAIN: "plain", ROOT: "root of the variance", VARIANCE: "variance, as published"}


def _losses(found: Records) -> Dots:
    dots = [
        ranged(
            label,
            "before fine-tuning" if when == "before" else "after",
            [row[name][when]["loss"] for row in found],
        )
        for name, label in LABELS.items()
        for when in ("before", "after")
    ]
    factor = _of(found, VARIANCE, "loss") / _of(found, PLAIN, "loss")
    return Dots(
        title=f"The recipe as published multiplies the loss of the trained network by {factor:.2g}",
        x=Axis("test loss (nats), median and range", logarithmic=True),
        dots=tuple(dots),
        rule=Rule(_of(found, PLAIN, "loss"), "trained network"),
    )


def _curves(found: Records) -> Lines:
    steps = found[0][PLAIN]["steps"]
    lines = [
        band(label, steps, [row[name]["accuracies"] for row in found], scale=100)
        for name, label in LABELS.items()
    ]
    ends = ", ".join(
        f"{label} {100 * _of(found, name, 'accuracy', 'after'):.1f}%"
        for name, label in LABELS.items()
    )
    return accuracy_chart(
        f"Test accuracy after fine-tuning: {ends}",
        lines,
        x=Axis("fine-tuning steps"),
        rule=(_of(found, PLAIN, "accuracy"), "before"),
    )


CLAIM = Claim(
    name="pretrained",
    statement=(
        "Batch norm can be put into a trained network without a change of what it computes, and "
        "the network gains from fine-tuning afterwards."
    ),
    sources=(
        Source(
            "fast.ai, imagenet_batchnorm.ipynb",
            "set gamma to the variance and beta to the mean, and the results are the same; "
            "fine-tuned, VGG-16 goes from 64.36 to 65.64%",
        ),
    ),
    measurement=(
        "A small VGG is trained without batch norm. Batch norm is then inserted after the "
        "activations of its hidden dense layers, with the statistics of training data: once with "
        "the root of the variance as weight (bnkit.insert), once with the variance, as in the "
        "published recipe. Outputs on the test set are compared. Then each, and the plain network "
        "too, is trained further by Adam at a low learning rate, on the same mini-batches."
    ),
    criteria=(
        "An insertion changes nothing if for every seed (three at least) no test output moves by "
        "1e-4 of the largest output or more; if they move with every seed, it does change it. "
        "Fine-tuning gains if the 95% interval over seeds of the difference in test accuracy, "
        "against the trained network and against the plain network trained further, lies above 0; "
        "an interval that ends below 0.1 points speaks against it. The claim holds if all four "
        "parts do."
    ),
    sizes={
        "toy": Pretrained(
            seeds=3,
            network="mlp",
            steps=60,
            population=5,
            fine_tuning_steps=10,
            evaluate_every=5,
        ),
        "digits": Pretrained(),
        "mnist": Pretrained(
            data="mnist",
            learning_rate=1e-3,
            steps=859,  # one epoch
            population=80,
            fine_tuning_steps=200,
            evaluate_every=50,
            seeds=3,
        ),
    },
    run=run,
)
