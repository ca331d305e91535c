"""Claim 5: batch norm regularises, by the noise of the other examples in the mini-batch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.data import Examples, batches, load
from bnkit.experiments.loaders import Loaders
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import (
    PairedDifference,
    paired_difference,
    paired_ratio,
)
from bnkit.moments import Moments
from bnkit.observation import evaluating, normalising_by_batch_statistics
from bnkit.recalibration import recalibrate
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Lines, band, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, above_one, beyond
from bnkit_claims.core.pairs import Records, points, select
from bnkit_claims.core.trainings import accuracy_in_eval_mode, experiment_for, train_to_end


@dataclass(frozen=True, kw_only=True)
class Regularisation(ClaimSettings):
    """The training on few `examples`, to overfit, and how the noise of one output is measured.

    The noise is that of `watched` held-out examples over `draws` mini-batches of each of
    `noise_sizes`. `close` is how much less accurate still counts as no worse, and `trained` the
    training accuracy without which a network has no gap to speak of.
    """

    examples: int = 300
    batch_sizes: tuple[int, ...] = (8, 64)
    dropout: float = 0.5
    hidden: tuple[int, ...] = (100, 100, 100)
    learning_rate: float = 0.2
    steps: int = 450
    noise_sizes: tuple[int, ...] = (2, 4, 8, 32, 128)
    watched: int = 5
    draws: int = 20
    close: float = 0.005
    trained: float = 0.9

    @property
    def largest(self) -> int:
        """The mini-batch size at which all but the gap is measured."""
        return self.batch_sizes[-1]


def run(settings: Regularisation, run_cases: RunCases = in_turn) -> Evidence:
    """Return the noise of batch norm, what it does to the gap, and the trap with dropout."""
    seeds = range(settings.seeds)
    cases = list(product(SIDES, settings.batch_sizes, (False, True), seeds))
    return judge(
        settings,
        noises=run_cases(noise, settings, list(seeds)),
        gaps=run_cases(gap, settings, cases),
        traps=run_cases(trap, settings, list(seeds)),
    )


def noise(settings: Regularisation, seed: int) -> dict[str, Any]:
    """Return the noise of a trained network's outputs at each mini-batch size."""
    model, loaders, few = _drawn(settings, "batch norm", settings.largest, seed)
    train_to_end(model, loaders, learning_rate=settings.learning_rate, steps=settings.steps)
    held_out = load(settings.data, folder=settings.folder).held_out.inputs
    generator = torch.Generator().manual_seed(seed)
    noises = [
        noise_of(model, held_out, few.inputs, size, settings, generator)
        for size in settings.noise_sizes
    ]
    return {"seed": seed, "noises": noises}


@torch.no_grad()
def noise_of(
    model: nn.Module,
    held_out: Tensor,
    companions: Tensor,
    size: int,
    settings: Regularisation,
    generator: torch.Generator,
) -> float:
    """Return how far one example's outputs vary with the rest of its mini-batch of `size` rows.

    It is the standard deviation over mini-batches, as a share of that over examples in eval mode;
    variances are averaged over outputs and watched examples.
    """
    with evaluating(model):
        between = Moments.of(model(held_out)).variance.mean()
    variances = []
    with normalising_by_batch_statistics(model):
        for example in held_out[: settings.watched]:
            # Each mini-batch is this example and size − 1 training examples, drawn anew.
            rows = [
                companions[torch.randperm(len(companions), generator=generator)[: size - 1]]
                for _ in range(settings.draws)
            ]
            outputs = [model(torch.cat([example[None], row]))[0] for row in rows]
            variances.append(Moments.of(torch.stack(outputs)).unbiased_variance.mean())
    return math.sqrt(torch.stack(variances).mean() / between)


def gap(settings: Regularisation, case: tuple[Side, int, bool, int]) -> dict[str, Any]:
    """Return the accuracies on the training and the test examples after one training."""
    side, batch_size, dropout, seed = case
    model, loaders, few = _drawn(settings, side, batch_size, seed)
    if dropout:
        model = followed(model, lambda _: [nn.Dropout(settings.dropout)])
    train_to_end(model, loaders, learning_rate=settings.learning_rate, steps=settings.steps)
    train, test = (
        accuracy_in_eval_mode(model, [(few.inputs, few.targets)]),
        accuracy_in_eval_mode(model, loaders.test),
    )
    return {
        "side": side,
        "batch size": batch_size,
        "dropout": dropout,
        "seed": seed,
        "train": train,
        "test": test,
        "gap": train - test,
    }


def trap(settings: Regularisation, seed: int) -> dict[str, Any]:
    """Return what dropout right before batch norm does to its variance and to the accuracy.

    `shift` is the training variance of each unit ÷ that in eval mode, averaged (Li et al. 2019).
    """
    plain, loaders, few = _drawn(settings, "plain", settings.largest, seed)
    model = followed(plain, lambda n: [nn.Dropout(settings.dropout), nn.BatchNorm1d(n)])
    train_to_end(model, loaders, learning_rate=settings.learning_rate, steps=settings.steps)
    mended = recalibrate(model, [few.inputs], estimator="layer_by_layer", progress=False)
    return {
        "seed": seed,
        "shift": shift_of(model, mended),
        "trapped": accuracy_in_eval_mode(model, loaders.test),
        "mended": accuracy_in_eval_mode(mended, loaders.test),
    }


def shift_of(trained: nn.Module, mended: nn.Module) -> float:
    """Return the geometric mean over units of the ratio of the running variances."""
    pairs = zip(_variances(trained), _variances(mended), strict=True)
    ratios = torch.cat([(left / right).log() for left, right in pairs])
    return math.exp(ratios.double().mean())


def _variances(model: nn.Module) -> Iterator[Tensor]:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d) and layer.running_var is not None:
            yield layer.running_var + layer.eps  # of a unit that is dead, eps alone


def followed(model: nn.Module, make: Callable[[int], list[nn.Module]]) -> nn.Sequential:
    """Return the multilayer perceptron with what `make(units)` gives after each activation."""
    layers: list[nn.Module] = []
    for layer in model.children():
        layers.append(layer)
        if isinstance(layer, nn.Linear):
            units = layer.out_features
        elif isinstance(layer, nn.ReLU):
            layers += make(units)
    return nn.Sequential(*layers)


def _drawn(
    settings: Regularisation, side: Side, batch_size: int, seed: int
) -> tuple[nn.Module, Loaders, Examples]:
    """Return the network, its loaders with few examples to train on, and these."""
    drawn = experiment_for(settings, batch_size=batch_size)
    every = load(settings.data, folder=settings.folder).train
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(every), generator=generator)[: settings.examples]
    few = Examples(every.inputs[chosen], every.targets[chosen])
    train = batches(few, batch_size, generator=generator)
    _, held_out, test = drawn.loaders(seed)
    return drawn.network(side, "relu", seed), Loaders(train, held_out, test), few


def judge(settings: Regularisation, noises: Records, gaps: Records, traps: Records) -> Evidence:
    """Return the verdict over the noise, the gap at each batch size, dropout, and the trap."""
    first_last = paired_ratio((each["noises"][0], each["noises"][-1]) for each in noises)
    narrowed = {size: _narrowed(settings, gaps, size) for size in settings.batch_sizes}
    instead = _instead(settings, gaps)
    shift = paired_ratio((each["shift"], 1.0) for each in traps)
    mended = paired_difference((each["trapped"], each["mended"]) for each in traps)
    return Evidence(
        headline=_headline(narrowed, instead),
        parts=(
            Part(
                "noise that falls with the mini-batch size",
                f"{first_last} times as much at {settings.noise_sizes[0]} examples as at "
                f"{settings.noise_sizes[-1]}",
                above_one(first_last),
            ),
            *(
                Part(f"a narrower gap at mini-batches of {n}", points(d), _less(d))
                for n, d in narrowed.items()
            ),
            Part(
                "no loss when batch norm replaces dropout",
                f"{points(instead)} of test accuracy",
                beyond(instead, bar=-settings.close, negligible=-settings.close),
            ),
            Part(
                "variance enlarged by dropout right before batch norm",
                f"{shift} times that in use",
                above_one(shift),
            ),
        ),
        beside=(Beside("accuracy regained by statistics without dropout", points(mended)),),
        figures=(_noise_chart(settings, noises), _gap_chart(settings, gaps), _trap_chart(traps)),
        details=(*gaps, *traps),
    )


def _headline(narrowed: Mapping[int, PairedDifference], instead: PairedDifference) -> str:
    gaps = " and ".join(
        f"{_by(d, 'narrower', 'wider')} at mini-batches of {n}" for n, d in narrowed.items()
    )
    return (
        f"With batch norm the generalisation gap is {gaps}; where it replaces dropout, test "
        f"accuracy is {_by(instead, 'higher', 'lower')}."
    )


def _by(difference: PairedDifference, more: str, less: str) -> str:
    if difference.difference is None:
        return "not comparable"
    size = f"{100 * abs(difference.difference):.1f}"
    if size == "0.0":
        return "the same"
    return f"{size} points {more if difference.difference > 0 else less}"


def _less(difference: PairedDifference) -> bool | None:
    return beyond(difference, bar=0, negligible=0.002)


def _narrowed(settings: Regularisation, gaps: Records, size: int) -> PairedDifference:
    """Return plain − batch norm of the gap, without dropout."""
    batch_norm, plain = (
        _by_seed(_trained(settings, gaps), "gap", size, side, dropout=False)
        for side in ("batch norm", "plain")
    )
    return _paired(batch_norm, plain)


def _instead(settings: Regularisation, gaps: Records) -> PairedDifference:
    """Return batch norm without dropout − plain with dropout, of the test accuracy."""
    rows = _trained(settings, gaps)
    plain = _by_seed(rows, "test", settings.largest, "plain", dropout=True)
    return _paired(plain, _by_seed(rows, "test", settings.largest, "batch norm", dropout=False))


def _trained(settings: Regularisation, gaps: Records) -> Records:
    return [row for row in gaps if row["train"] >= settings.trained]


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    return paired_difference((first[n], second[n]) for n in sorted(first.keys() & second.keys()))


def _by_seed(gaps: Records, what: str, size: int, side: str, *, dropout: bool) -> dict[int, float]:
    rows = select(gaps, **{"side": side, "dropout": dropout, "batch size": size})
    return {row["seed"]: row[what] for row in rows}


def _noise_chart(settings: Regularisation, noises: Records) -> Lines:
    sizes, runs = settings.noise_sizes, [each["noises"] for each in noises]
    line = band("batch norm", sizes, runs, side="batch norm", scale=100)
    root = band("1 ÷ √size", sizes, [[(sizes[0] / n) ** 0.5 * (line.y[0] or 0) for n in sizes]])
    return Lines(
        title=f"The noise of one output goes from {line.y[0]:.0f}% to {line.y[-1]:.1f}%",
        x=Axis("examples in the mini-batch", logarithmic=True),
        y=Axis("deviation over mini-batches ÷ over examples (%), with range", logarithmic=True),
        lines=(line, root),
    )


def _gap_chart(settings: Regularisation, gaps: Records) -> Dots:
    kinds: Mapping[str, tuple[Side, bool]] = {
        f"{side}{' and dropout' if dropout else ''}": (side, dropout)
        for side, dropout in product(SIDES, (False, True))
    }
    dots = [
        ranged(
            f"mini-batches of {size}",
            name,
            [100 * gap for gap in _by_seed(gaps, "gap", size, side, dropout=dropout).values()],
            side,
        )
        for size in settings.batch_sizes
        for name, (side, dropout) in kinds.items()
    ]
    return Dots(
        title=f"How much better a network does on its {settings.examples} training examples",
        x=Axis("training − test accuracy (points), median and range"),
        dots=tuple(dots),
    )


def _trap_chart(traps: Records) -> Dots:
    names: Sequence[tuple[str, str]] = (
        ("trapped", "statistics of training"),
        ("mended", "statistics without dropout"),
    )
    dots: list[Dot] = [ranged(row, row, [100 * t[name] for t in traps]) for name, row in names]
    return Dots(
        title="Dropout right before batch norm: the accuracy by either statistics",
        x=Axis("test accuracy (%), median and range"),
        dots=tuple(dots),
    )


CLAIM = Claim(
    name="regularisation",
    statement=(
        "Batch norm regularises: the noise of its mini-batches narrows the generalisation gap, so "
        "that dropout can be removed; where it stays, it must not come right before batch norm."
    ),
    sources=(
        Source(
            "Ioffe and Szegedy 2015, section 3.4",
            "an example's output depends on its mini-batch, and dropout can be removed or reduced",
        ),
        Source("Udacity's lesson", "it adds a little noise, somewhat like dropout"),
        Source("Luo et al. 2019", "its regularisation weakens as the mini-batch grows"),
        Source("Li et al. 2019", "dropout before batch norm shifts its variance, and harms"),
    ),
    measurement=(
        "A trained network sees the same example in many mini-batches, and the deviation of its "
        "outputs is measured against the mini-batch size. Both sides are trained on few examples, "
        "with and without dropout, at several mini-batch sizes; the gap is training accuracy − "
        "test accuracy. Then dropout comes right before batch norm: its running variance is "
        "compared with that in eval mode, and the accuracy with that after recalibration."
    ),
    criteria=(
        "Parts, each by its 95% interval over seeds: the noise is larger (ratio above 1) in the "
        "smallest than in the largest mini-batch; without dropout the gap is narrower with batch "
        "norm (above 0 points; refuted below 0.2), at each mini-batch size; at the largest size, "
        "batch norm without dropout is no more than 0.5 points less accurate than dropout without "
        "batch norm; dropout right before batch norm makes the training variance larger than that "
        "in use (ratio above 1). Ratios that end below 1.1 speak against. Pairs in which a network "
        "ends below 90% on its training examples do not count. Holds if all parts do."
    ),
    sizes={
        "toy": Regularisation(
            seeds=3,
            examples=150,
            batch_sizes=(8, 32),
            hidden=(20, 20),
            steps=60,
            noise_sizes=(2, 32),
            watched=2,
            draws=15,
        ),
        "digits": Regularisation(),
        "mnist": Regularisation(data="mnist", examples=2000, steps=2000),
    },
    run=run,
)
