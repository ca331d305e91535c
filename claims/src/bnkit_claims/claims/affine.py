"""Claim 21: gamma and beta are needed, since SGD would undo the normalisation without them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.networks import HIDDEN
from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit.experiments.training import Training, train
from bnkit.surgery import convert
from bnkit_claims.core.best_rates import Run, edge_notes, final_accuracy, own_best, run_of
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import (
    Axis,
    Dots,
    Lines,
    Rule,
    accuracy_chart,
    band,
    in_points,
    ranged,
)
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, points, select
from bnkit_claims.core.trainings import accuracy_in_eval_mode, experiment_for

BatchNorms = list[nn.BatchNorm1d]


@dataclass(frozen=True, kw_only=True)
class Affine(ClaimSettings):
    """The training of each variant, and the share of the normalisation that counts as undone."""

    activations: tuple[str, ...] = ("sigmoid", "relu")
    learning_rates: tuple[float, ...] = (0.3, 1.0)
    hidden: tuple[int, ...] = HIDDEN
    batch_size: int = 60
    steps: int = 240
    evaluate_every: int = 20
    negligible: float = 0.002
    undone: float = 0.5
    seeds: int = 4


def learned(model: nn.Module) -> nn.Module:
    """Return the network as it is: gamma and beta learn."""
    return model


def off(model: nn.Module) -> nn.Module:
    """Return the network whose batch norms have neither gamma nor beta."""
    return convert(model, lambda layer: nn.BatchNorm1d(_units(layer), affine=False))


def _units(layer: Any) -> int:
    units: int = layer.num_features
    return units


def gamma_frozen(model: nn.Module) -> nn.Module:
    """Return the network in which gamma stays 1 and beta learns."""
    for layer in batch_norms(model):
        layer.weight.requires_grad = False
    return model


def beta_frozen(model: nn.Module) -> nn.Module:
    """Return the network in which beta stays 0 and gamma learns."""
    for layer in batch_norms(model):
        layer.bias.requires_grad = False
    return model


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "learned": learned,
    "gamma frozen at 1": gamma_frozen,
    "beta frozen at 0": beta_frozen,
    "off": off,
}


def batch_norms(model: nn.Module) -> BatchNorms:
    """Return the batch norms of a network, in order."""
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d)]


def run(settings: Affine, run_cases: RunCases = in_turn) -> Evidence:
    """Return the accuracy without gamma, beta or both, and what learned ones have become."""
    cases = list(product(VARIANTS, settings.activations, range(settings.seeds)))
    return judge(settings, run_cases(training, settings, cases))


def training(settings: Affine, case: tuple[str, str, int]) -> dict[str, Any]:
    """Return the runs of one variant over the learning rates.

    `undone` has, for learned gamma and beta, what share of the normalisation they undo at each
    learning rate (None for one that diverged).
    """
    variant, activation, seed = case
    drawn = experiment_for(settings, activations=[activation])
    runs, undone = {}, {}
    for rate in settings.learning_rates:
        model = VARIANTS[variant](drawn.network("batch norm", activation, seed))
        runs[str(rate)] = _run(settings, model, drawn.loaders(seed), rate)
        if variant == "learned":
            diverged = runs[str(rate)]["diverged"]
            undone[str(rate)] = None if diverged else undone_by(batch_norms(model))
    return {
        "variant": variant,
        "activation": activation,
        "seed": seed,
        "runs": runs,
        "undone": undone,
    }


def _run(settings: Affine, model: nn.Module, loaders: Any, rate: float) -> Run:
    training = Training(
        learning_rate=rate, steps=settings.steps, evaluate_every=settings.evaluate_every
    )
    trained = train(model, loaders.train, loaders.held_out, training)
    test = accuracy_in_eval_mode(model, loaders.test)
    return run_of(trained, length=settings.steps, test=test)


@torch.no_grad()
def undone_by(layers: BatchNorms) -> dict[str, float]:
    """Return what share of the normalisation gamma and beta undo, 0 for none and 1 for all of it.

    With gamma = σ and beta = μ of the layer's input, batch norm gives that input back. `gamma` is
    the share of log σ that is in log |gamma|, by least squares over the units of all layers, and
    `beta` that of μ in beta.
    """
    sigmas = _joined(_running_std(layer).log() for layer in layers)
    gammas = _joined(layer.weight.abs().clamp(min=1e-12).log() for layer in layers)
    means = _joined(_running_mean(layer) for layer in layers)
    betas = _joined(layer.bias for layer in layers)
    return {"gamma": _share(gammas, sigmas), "beta": _share(betas, means)}


def _share(part: Tensor, whole: Tensor) -> float:
    # The slope of the line through the origin by least squares.
    return float((part @ whole) / (whole @ whole).clamp(min=1e-30))


def _joined(values: Iterator[Tensor]) -> Tensor:
    return torch.cat([each.double() for each in values])


def _running_std(layer: nn.BatchNorm1d) -> Tensor:
    assert layer.running_var is not None
    return (layer.running_var + layer.eps).sqrt()


def _running_mean(layer: nn.BatchNorm1d) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def judge(settings: Affine, trained: Records) -> Evidence:
    """Return the verdict: what each variant loses, and whether SGD undoes the normalisation."""
    best = _best(settings, trained)
    losses = {
        f"{activation}, {variant}": _loss(best, activation, variant)
        for activation, variant in product(settings.activations, VARIANTS)
        if variant != "learned"
    }
    gains = {name: losses[f"{name}, off"] for name in settings.activations}
    undone = {
        f"{name} with {activation}": _undone(best, trained, activation, name)
        for activation, name in product(settings.activations, ("gamma", "beta"))
    }
    needed = {name: _needed(settings, name, gain) for name, gain in gains.items()}
    undoing = tuple(_undoing(settings, name, share) for name, share in undone.items())
    return Evidence(
        headline=_headline(needed, gains, undone),
        parts=(*needed.values(), *undoing),
        beside=tuple(
            Beside(f"gain over {variant} with {name}", points(losses[f"{name}, {variant}"]))
            for name, variant in product(settings.activations, VARIANTS)
            if "frozen" in variant
        ),
        notes=(
            *_against(settings, undoing),
            *edge_notes(
                {f"{variant} with {name}": found for (name, variant), found in best.items()},
                settings.learning_rates,
            ),
        ),
        figures=(_curves(settings, best), _ends(losses), _shares(best, trained)),
        details=tuple(
            {
                "activation": activation,
                "variant": variant,
                "seed": seed,
                "learning rate": rate,
                "test": run["test"],
            }
            for (activation, variant), by_seed in best.items()
            for seed, (rate, run) in by_seed.items()
        ),
    )


def _headline(
    needed: Mapping[str, Part],
    gains: Mapping[str, PairedDifference],
    undone: Mapping[str, PairedDifference],
) -> str:
    helped = " and ".join(name for name, part in needed.items() if part.shown)
    improve = (
        f"improve test accuracy with {helped}"
        if helped
        else "are not shown to improve test accuracy"
    )
    by = ", ".join(f"{name} {100 * (d.difference or 0):+.1f}" for name, d in gains.items())
    return (
        f"Learned gamma and beta {improve} ({by} points), and undo {_most(undone)} of the "
        f"normalisation."
    )


def _most(undone: Mapping[str, PairedDifference]) -> str:
    known = [share.difference for share in undone.values() if share.difference is not None]
    if len(known) < len(undone):
        return "an unknown share"
    return f"up to {max(known):.0%}" if max(known) >= 0.005 else "none"


def _needed(settings: Affine, activation: str, gain: PairedDifference) -> Part:
    shown = beyond(gain, bar=0, negligible=settings.negligible)
    return Part(f"accuracy gained by gamma and beta with {activation}", points(gain), shown)


def _undoing(settings: Affine, name: str, share: PairedDifference) -> Part:
    shown = beyond(share, bar=settings.undone, negligible=settings.undone)
    return Part(f"normalisation undone by {name}", f"{share:.1%}", shown)


def _against(settings: Affine, undoing: Sequence[Part]) -> tuple[str, ...]:
    if any(part.shown is not False for part in undoing):
        return ()
    note = (
        "Contrary to its sources, SGD leaves the normalisation in place: learned gamma and beta "
        f"undo less than {settings.undone:.0%} of it."
    )
    return (note,)


Best = Mapping[tuple[str, str], Mapping[int, tuple[float, Run]]]


def _best(settings: Affine, trained: Records) -> Best:
    """Return by activation, variant and seed the run at the variant's own best learning rate."""
    return {
        (activation, variant): own_best(
            select(trained, activation=activation, variant=variant),
            lambda run: -final_accuracy(run),
        )
        for activation, variant in product(settings.activations, VARIANTS)
    }


def _loss(best: Best, activation: str, variant: str) -> PairedDifference:
    without, whole = best[activation, variant], best[activation, "learned"]
    return paired_difference((without[seed][1]["test"], whole[seed][1]["test"]) for seed in whole)


def _undone(best: Best, trained: Records, activation: str, name: str) -> PairedDifference:
    shares = _shares_of(best, trained, activation, name)
    return paired_difference((0.0, share) for share in shares)


def _shares_of(best: Best, trained: Records, activation: str, name: str) -> list[float]:
    rows = {row["seed"]: row for row in select(trained, activation=activation, variant="learned")}
    found = [rows[n]["undone"][str(rate)] for n, (rate, _) in best[activation, "learned"].items()]
    return [shares[name] for shares in found if shares is not None]


def _curves(settings: Affine, best: Best) -> Lines:
    x = range(settings.evaluate_every, settings.steps + 1, settings.evaluate_every)
    lines = [
        band(
            variant,
            x,
            [run["accuracies"] for _, run in by_seed.values()],
            side="batch norm" if variant == "learned" else None,
            panel=activation,
            scale=100,
        )
        for (activation, variant), by_seed in best.items()
    ]
    return accuracy_chart("Accuracy along training with and without gamma and beta", lines)


def _ends(losses: Mapping[str, PairedDifference]) -> Dots:
    return Dots(
        title="What learned gamma and beta add to the accuracy at the end",
        x=Axis("gain in test accuracy over the variant (points), with 95% interval"),
        dots=tuple(in_points(name, difference) for name, difference in losses.items()),
        rule=Rule(0, "no gain"),
    )


def _shares(best: Best, trained: Records) -> Dots:
    activations = dict.fromkeys(activation for activation, _ in best)
    dots = [
        ranged(
            f"{activation}, {name}",
            name,
            [100 * share for share in _shares_of(best, trained, activation, name)],
        )
        for activation, name in product(activations, ("gamma", "beta"))
    ]
    return Dots(
        title="How much of the normalisation the learned gamma and beta undo",
        x=Axis("share undone (%), median and range"),
        dots=tuple(dots),
        rule=Rule(100, "all undone"),
    )


CLAIM = Claim(
    name="gamma-and-beta",
    statement=(
        "Gamma and beta are needed: SGD would undo the normalisation, and they let it do so with "
        "two numbers per unit."
    ),
    sources=(
        Source(
            "Ioffe and Szegedy 2015, section 3",
            "they restore what the layer can represent: gamma = σ and beta = μ give the input back",
        ),
        Source(
            "A tutorial's reason for gamma and beta",
            "if it lowers the loss SGD undoes the normalisation, by changing these two only",
        ),
        Source("Ioffe 2017, section 4", "gamma stays 1 where a ReLU follows"),
    ),
    measurement=(
        "A network with batch norm is trained with gamma and beta learned, with gamma or beta "
        "frozen, and without both, from the same weights on the same mini-batches; each at its own "
        "best learning rate, chosen on the other seeds. Learned gamma and beta are compared with "
        "the σ and μ of the layer's input, which would undo the normalisation: the share is the "
        "least-squares slope of log gamma on log σ, and of beta on μ."
    ),
    criteria=(
        "For each activation: the gain of learned gamma and beta over none in final test accuracy, "
        "its 95% interval over seeds above 0 points (refuted below 0.2); and for gamma and for "
        "beta, the share of the normalisation that is undone, its interval above a half (refuted "
        "below). Frozen ones are shown beside. The claim holds if all parts do."
    ),
    sizes={
        "toy": Affine(
            seeds=3,
            activations=("sigmoid",),
            learning_rates=(0.3,),
            hidden=(16, 16),
            steps=60,
        ),
        "digits": Affine(),
        "mnist": Affine(
            data="mnist", learning_rates=(0.1, 0.3, 1.0, 3.0), steps=1500, evaluate_every=100
        ),
    },
    run=run,
)
