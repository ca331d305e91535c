"""Claim 6: batch norm helps because it reduces internal covariate shift."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnkit.experiments.data import load
from bnkit.experiments.networks import ACTIVATIONS
from bnkit.experiments.results import Side
from bnkit.experiments.statistics import PairedRatio
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Lines, accuracy_chart, band, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, above_one
from bnkit_claims.core.gradients import gradient_shift, inputs_and_outputs
from bnkit_claims.core.pairs import Records, ratio_of, rounded, select
from bnkit_claims.core.trainings import experiment_for, in_segments

Kind = Literal["plain", "batch norm", "noisy batch norm"]
KINDS: tuple[Kind, ...] = ("plain", "batch norm", "noisy batch norm")
PERCENTILES = (0.15, 0.5, 0.85)  # Ioffe and Szegedy 2015, figure 1


@dataclass(frozen=True, kw_only=True)
class CovariateShift(ClaimSettings):
    """The training that is watched, and the noise that shifts the inputs of every layer.

    The noise is that of Santurkar et al. 2018, appendix A: each unit has a mean within
    ±`noise_mean` and a scale from 1 to `noise_scale`, drawn anew at each step, and each example
    its own within `noise_spread` of these.
    """

    activations: tuple[str, ...] = ("sigmoid", "relu")
    learning_rates: tuple[float, ...] = (1.0, 0.1)  # one for each activation
    init: str = "glorot"
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 700
    every: int = 20
    target: float = 0.9
    noise_mean: float = 0.5
    noise_scale: float = 1.25
    noise_spread: float = 0.5


class Noisy(nn.Module):
    """An activation whose inputs are shifted and scaled at random, other than at any step before.

    It has no eval mode: the shift is there whenever the network is used.
    """

    def __init__(self, activation: nn.Module, settings: CovariateShift) -> None:
        super().__init__()
        self.activation = activation
        self.settings = settings

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations (N, units) of the disturbed inputs (N, units)."""
        noise, spread = self.settings, self.settings.noise_spread
        mean = noise.noise_mean * _symmetric(input[0])
        scale = 1 + (noise.noise_scale - 1) * torch.rand_like(input[0])
        shift = mean + spread * _symmetric(input)
        factor = scale + spread * torch.randn_like(input)
        output: Tensor = self.activation(factor * input + shift)
        return output


def _symmetric(like: Tensor) -> Tensor:
    return 2 * torch.rand_like(like) - 1


def run(settings: CovariateShift, run_cases: RunCases = in_turn) -> Evidence:
    """Return how far the inputs of the layers move while the layers before them learn."""
    cases = product(KINDS, settings.activations, range(settings.seeds))
    return judge(settings, run_cases(watch, settings, list(cases)))


def watch(settings: CovariateShift, case: tuple[Kind, str, int]) -> dict[str, Any]:
    """Return what one training shows: the percentiles, the gradients' shift, and the accuracy.

    `percentiles` are those of each unit of the last hidden layer, at each of `steps`, on the same
    held-out examples; `drift` is the mean distance that they move from one to the next, and
    `drift_in_spreads` the same in units of each unit's distance of the outer two.
    """
    kind, activation, seed = case
    drawn = experiment_for(settings, activations=[activation])
    side: Side = "plain" if kind == "plain" else "batch norm"
    model = drawn.network(side, activation, seed)
    if kind == "noisy batch norm":
        model = disturbed(model, activation, settings)
    rate = settings.learning_rates[settings.activations.index(activation)]
    seen, shifts, accuracies = [], [], []
    segments = in_segments(
        model, drawn.loaders(seed), learning_rate=rate, steps=settings.steps, every=settings.every
    )
    batches = iter(drawn.loaders(seed).train)
    held_out = load(settings.data, folder=settings.folder).held_out.inputs
    for segment in segments:
        seen.append(percentiles(model, held_out))
        accuracies.append(None if segment is None else segment.curve.metric[-1])
        if kind != "noisy batch norm":
            shifts.append(gradient_shift(model, next(batches), rate))
    return {
        "kind": kind,
        "activation": activation,
        "seed": seed,
        "typical": _typical(seen),
        "drift": drift(seen),
        "drift_in_spreads": drift(seen, in_spreads=True),
        "gradient_shift": _mean_of(shift["relative"] for shift in shifts),
        "gradient_distance": _mean_of(shift["distance"] for shift in shifts),
        "gradient_cosine": _mean_of(shift["cosine"] for shift in shifts),
        "accuracy": accuracies,
    }


def disturbed(model: nn.Module, activation: str, settings: CovariateShift) -> nn.Sequential:
    """Return the multilayer perceptron `model` with noise before each of its activations."""
    kind = type(ACTIVATIONS[activation]())
    layers = [Noisy(m, settings) if isinstance(m, kind) else m for m in model.children()]
    return nn.Sequential(*layers)


def percentiles(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return (3, units): percentiles of the inputs of the last hidden activation, by unit.

    At most 1,000 examples are used, and batch norms normalise by these, as in training.
    """
    last = list(model.children())[-2]
    last = last.activation if isinstance(last, Noisy) else last
    seen, _ = inputs_and_outputs(model, last, inputs[:1000])
    return torch.quantile(seen, torch.tensor(PERCENTILES), dim=0)


def drift(seen: Sequence[Tensor], *, in_spreads: bool = False) -> float | None:
    """Return how far percentiles (3, units) move from one measurement to the next, on average.

    `in_spreads` divides by each unit's distance of the outer percentiles before the move.
    """
    moves = []
    for before, after in pairwise(seen):
        unit = (before[-1] - before[0]).clamp(min=1e-6) if in_spreads else 1.0
        moves.append(((after - before).abs() / unit).mean().item())
    return _mean_of(moves)


def _typical(seen: Sequence[Tensor]) -> list[list[float | None]]:
    """Return the three percentiles over training of the unit whose drift is the median one."""
    # By how far each unit's percentiles move, in all; a unit in the middle is the typical one.
    paths = torch.stack(list(seen))  # (measurements, 3, units)
    unit = int(paths.diff(dim=0).abs().mean((0, 1)).argsort()[paths.shape[2] // 2])
    lines = paths[:, :, unit].T.tolist()
    return [[value if math.isfinite(value) else None for value in line] for line in lines]


def _mean_of(values: Any) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def judge(settings: CovariateShift, found: Records) -> Evidence:
    """Return the verdict: inputs and gradients move less, and noise takes the gain away."""
    moves = {name: _drifts(found, name) for name in settings.activations}
    turns = {
        name: ratio_of(select(found, activation=name), "gradient_shift", by="kind")
        for name in settings.activations
    }
    noise = {name: _noise(settings, found, name) for name in settings.activations}
    return Evidence(
        headline=f"{_movement(moves)}; {_with_noise(noise)}.",
        parts=(
            *(_steadier(f"steadier inputs of {name} units", r) for name, r in moves.items()),
            *(_steadier(f"steadier gradients of {name} layers", r) for name, r in turns.items()),
            *(_caused(settings, name, *ratios) for name, ratios in noise.items()),
        ),
        notes=_against(noise),
        figures=(
            _percentile_chart(settings, found),
            _drift_chart(settings, found),
            _gradient_chart(settings, found),
            _accuracy_chart(settings, found),
        ),
        details=tuple(_row(settings, each) for each in found),
    )


Noise = Mapping[str, tuple[PairedRatio, PairedRatio]]


def _movement(moves: Mapping[str, PairedRatio]) -> str:
    known = [f"{rounded(r.ratio)} ({name})" for name, r in moves.items() if r.ratio is not None]
    if not known:
        return "How far a layer's inputs move is unknown"
    return f"Without batch norm a layer's inputs move {' and '.join(known)} times as far"


def _with_noise(noise: Noise) -> str:
    words = {True: "no faster", False: "still {} times as fast"}
    known = [
        f"{words[cause].format(rounded(faster.ratio))} ({name})"
        for name, (moved, faster) in noise.items()
        for cause in [_cause(moved, faster)]
        if cause is not None
    ]
    if not known:
        return "these runs cannot tell whether stability speeds up training"
    return f"when noise moves them more, batch norm is {' and '.join(known)}"


def _steadier(what: str, ratio: PairedRatio) -> Part:
    return Part(what, f"move {_known(ratio)} times as far without batch norm", above_one(ratio))


def _caused(settings: CovariateShift, name: str, moved: PairedRatio, faster: PairedRatio) -> Part:
    figures = (
        f"noise moves the inputs {_known(moved)} times as far as plain; plain takes "
        f"{_known(faster)} times the steps to {settings.target:.0%}"
    )
    return Part(f"steadier inputs cause the speed with {name}", figures, _cause(moved, faster))


def _known(ratio: PairedRatio) -> str:
    return "an unknown number of" if ratio.ratio is None else str(ratio)


def _against(noise: Noise) -> tuple[str, ...]:
    kept = [name for name, ratios in noise.items() if _cause(*ratios) is False]
    if not kept:
        return ()
    note = (
        "Contrary to Ioffe and Szegedy, and as Santurkar et al. found, batch norm with "
        f"{' and '.join(kept)} is faster than the plain network even when noise moves its inputs "
        "more."
    )
    return (note,)


def _cause(moved: PairedRatio, faster: PairedRatio) -> bool | None:
    """Return whether the gain is lost with the stability; None unless the noise takes that away."""
    if above_one(moved) is not True:
        return None
    gained = above_one(faster)
    return None if gained is None else not gained


def _drifts(found: Records, activation: str) -> PairedRatio:
    return ratio_of(select(found, activation=activation), "drift", by="kind")


def _noise(
    settings: CovariateShift, found: Records, activation: str
) -> tuple[PairedRatio, PairedRatio]:
    """Return noisy ÷ plain of how far the inputs move, and plain ÷ noisy of the steps taken."""
    noisy, own = "noisy batch norm", select(found, activation=activation)
    steps = [{**each, "steps": _steps_to(settings, each["accuracy"])} for each in own]
    return (
        ratio_of(own, "drift", by="kind", over=noisy, under="plain"),
        ratio_of(steps, "steps", by="kind", under=noisy),
    )


def _steps_to(settings: CovariateShift, accuracies: Sequence[float | None]) -> int:
    """Return the first measured step at the target; the length of the run where there is none."""
    reached = (
        place * settings.every
        for place, accuracy in enumerate(accuracies)
        if accuracy is not None and accuracy >= settings.target
    )
    return next(reached, settings.steps)


def _row(settings: CovariateShift, found: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in found.items() if not isinstance(value, list)}
    return {**numbers, "steps to target": _steps_to(settings, found["accuracy"])}


def _side(kind: Kind) -> Side | None:
    return None if kind == "noisy batch norm" else kind


def _steps(settings: CovariateShift) -> list[int]:
    return list(range(0, settings.steps + 1, settings.every))


def _percentile_chart(settings: CovariateShift, found: Records) -> Lines:
    shown = select(found, activation=settings.activations[0], seed=0)
    names = [f"{share:.0%}" for share in PERCENTILES]
    lines = tuple(
        band(name, _steps(settings), [values], side=_side(r["kind"]), panel=r["kind"])
        for r in shown
        for name, values in zip(names, r["typical"], strict=True)
    )
    times = _drifts(found, settings.activations[0]).ratio
    moved = f"move {times:.1f} times as far" if times else "move"
    return Lines(
        title=(
            f"Without batch norm the inputs of the last hidden layer {moved}: percentiles of the "
            f"typical {settings.activations[0]} unit of one seed"
        ),
        x=Axis("training step"),
        y=Axis("input of the activation, percentiles 15, 50 and 85"),
        lines=lines,
    )


def _dots(settings: CovariateShift, found: Records, what: str) -> tuple[Dot, ...]:
    dots = (
        ranged(
            name, kind, [r[what] for r in select(found, activation=name, kind=kind)], _side(kind)
        )
        for name, kind in product(settings.activations, KINDS)
    )
    return tuple(dot for dot in dots if dot.value is not None)


def _drift_chart(settings: CovariateShift, found: Records) -> Dots:
    return Dots(
        title="How far the inputs of the last hidden layer move, all units: median and range",
        x=Axis(f"mean move of the three percentiles in {settings.every} steps", logarithmic=True),
        dots=_dots(settings, found, "drift"),
    )


def _gradient_chart(settings: CovariateShift, found: Records) -> Dots:
    return Dots(
        title="How far a layer's gradient moves when the layers before it take their step",
        x=Axis("distance of the gradients before and after ÷ norm before; median and range"),
        dots=_dots(settings, found, "gradient_shift"),
    )


def _accuracy_chart(settings: CovariateShift, found: Records) -> Lines:
    lines = []
    for activation, kind in product(settings.activations, KINDS):
        runs = [
            [None if a is None else 100 * a for a in r["accuracy"]]
            for r in select(found, activation=activation, kind=kind)
        ]
        lines.append(band(kind, _steps(settings), runs, side=_side(kind), panel=activation))
    harmless = "Inputs that noise moves at every step, and the network still learns"
    open_ = "How fast the network learns, with noise after batch norm too"
    title = harmless if _noise_is_harmless(settings, found) else open_
    return accuracy_chart(title, lines, x=Axis("training step"), rule=(settings.target, "target"))


def _noise_is_harmless(settings: CovariateShift, found: Records) -> bool:
    return all(_cause(*_noise(settings, found, name)) is False for name in settings.activations)


CLAIM = Claim(
    name="internal-covariate-shift",
    statement="Batch norm helps because it reduces internal covariate shift.",
    sources=(
        Source(
            "Ioffe and Szegedy 2015, sections 1 and 4.1, figure 1",
            "the inputs of each layer change as the layers before it learn, which slows training; "
            "batch norm keeps their distribution stable, and so speeds it up",
        ),
        Source(
            "Santurkar et al. 2018, section 2",
            "against it: noise after batch norm makes the inputs less stable than without it, and "
            "the network learns as fast; measured by gradients the shift is not smaller",
        ),
    ),
    measurement=(
        "A network with three hidden layers is trained plain, with batch norm, and with batch norm "
        "followed by noise of another mean and scale at every step. While it learns, the "
        "percentiles 15, 50 and 85 of the inputs of each unit of the last hidden layer are taken "
        "on the same held-out examples, and their mean move from one measurement to the next is "
        "compared. The shift by gradients is the distance of a layer's gradient before and after "
        "the layers before it have taken their step, divided by its norm before. The noise asks "
        "for the cause: if stable inputs are what helps, it takes the gain in steps away."
    ),
    criteria=(
        "For each activation three parts: the inputs and the gradients move less with batch norm "
        "where the 95% interval over seeds of plain ÷ batch norm lies above 1 (against: below "
        "1.1). Stability is the cause where the noisy network, whose inputs move more than the "
        "plain one's (interval above 1, else nothing is shown), is no faster than the plain one: "
        "the interval of the steps to the target, plain ÷ noisy, ends below 1.1; it is not the "
        "cause where that lies above 1. A run that never gets there counts with its full length, "
        "which is too few steps rather than too many."
    ),
    sizes={
        "toy": CovariateShift(
            seeds=3,
            activations=("sigmoid",),
            learning_rates=(1.0,),
            hidden=(16, 16),
            steps=60,
            every=20,
            target=0.5,
        ),
        "digits": CovariateShift(),
        "mnist": CovariateShift(data="mnist", steps=3000, every=50),
    },
    run=run,
)
