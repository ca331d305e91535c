"""Claim 16: batch norm suffers in small mini-batches, and there is something to do about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import nn

from bnkit.experiments.data import load
from bnkit.experiments.networks import HIDDEN
from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit.layers import Ramp
from bnkit.recalibration import recalibrate
from bnkit.surgery import convert
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dots, Line, Lines, Rule, band, in_points
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, points, select
from bnkit_claims.core.trainings import accuracy_in_eval_mode, experiment_for, train_to_end

MOVING, RECALIBRATED = "moving average", "recalibrated"


@dataclass(frozen=True, kw_only=True)
class SmallBatches(ClaimSettings):
    """The mini-batch sizes, each of which sees the same `examples` in all.

    The learning rate is in proportion to the mini-batch size, `learning_rate` for `reference` of
    them (Goyal et al. 2017), up to `highest_rate`. Statistics are recalibrated on `calibration`
    training examples at once.
    """

    batch_sizes: tuple[int, ...] = (2, 4, 16, 64)
    examples: int = 2000
    hidden: tuple[int, ...] = HIDDEN
    learning_rate: float = 0.1
    reference: int = 16
    highest_rate: float = 0.5
    ghost: int = 16
    groups: int = 4
    calibration: int = 1000
    negligible: float = 0.005
    seeds: int = 4


def ghost(model: nn.Module, settings: SmallBatches, _steps: int) -> nn.Module:
    """Return the network with ghost batch norm."""
    return convert(model, "ghost", virtual_batch_size=settings.ghost)


def renorm(model: nn.Module, _settings: SmallBatches, steps: int) -> nn.Module:
    """Return the network with batch renorm, its limits relaxed from a tenth to half of the way.

    r up to 3 and d up to 5 are those of Ioffe 2017, section 4.
    """
    start, end = steps // 10, max(steps // 2, steps // 10 + 1)
    return convert(
        model,
        "renorm",
        r_max=Ramp(first=1.0, last=3.0, start=start, end=end),
        d_max=Ramp(first=0.0, last=5.0, start=start, end=end),
    )


def group(model: nn.Module, settings: SmallBatches, _steps: int) -> nn.Module:
    """Return the network with group norm, as new: weight 1 and bias 0."""
    return convert(model, lambda layer: nn.GroupNorm(settings.groups, _units(layer)))


def _units(layer: Any) -> int:
    units: int = layer.num_features
    return units


METHODS: dict[str, Callable[[nn.Module, SmallBatches, int], nn.Module]] = {
    "batch norm": lambda model, _settings, _steps: model,
    "ghost": ghost,
    "renorm": renorm,
    "group norm": group,
}


def run(settings: SmallBatches, run_cases: RunCases = in_turn) -> Evidence:
    """Return the accuracy of each kind of normalisation against the mini-batch size."""
    cases = [
        case
        for case in product(METHODS, settings.batch_sizes, range(settings.seeds))
        if case[0] != "ghost" or case[1] > settings.ghost  # up to there it is batch norm
    ]
    return judge(settings, run_cases(training, settings, cases))


def training(settings: SmallBatches, case: tuple[str, int, int]) -> dict[str, Any]:
    """Return the test accuracies with the moving average and with recalibrated statistics."""
    method, batch_size, seed = case
    drawn = experiment_for(settings, batch_size=batch_size)
    steps = max(1, settings.examples // batch_size)
    model = METHODS[method](drawn.network("batch norm", "relu", seed), settings, steps)
    loaders, rate = drawn.loaders(seed), settings.learning_rate * batch_size / settings.reference
    rate = min(rate, settings.highest_rate)
    ended = train_to_end(model, loaders, learning_rate=rate, steps=steps)
    found = {"method": method, "batch size": batch_size, "seed": seed}
    if not ended:
        return {**found, MOVING: 0.0, RECALIBRATED: 0.0}
    moving = accuracy_in_eval_mode(model, loaders.test)
    if method == "group norm":  # it has no statistics
        return {**found, MOVING: moving, RECALIBRATED: moving}
    examples = load(settings.data, folder=settings.folder).train.inputs[: settings.calibration]
    better = recalibrate(model, [examples], progress=False)
    return {**found, MOVING: moving, RECALIBRATED: accuracy_in_eval_mode(better, loaders.test)}


def judge(settings: SmallBatches, trained: Records) -> Evidence:
    """Return the verdict over what small mini-batches cost and over each of the remedies."""
    differences = _differences(settings, trained)
    return Evidence(
        headline=_headline(settings, differences),
        parts=tuple(_part(settings, name, d) for name, d in differences.items()),
        figures=(_curves(settings, trained), _remedies(differences)),
        details=tuple(trained),
    )


def _differences(settings: SmallBatches, trained: Records) -> Mapping[str, PairedDifference]:
    """Return each gain in accuracy that the sources speak of, under its name."""
    small, large = settings.batch_sizes[0], settings.batch_sizes[-1]

    def accuracies(method: str, size: int, what: str = MOVING) -> list[float]:
        rows = select(trained, **{"method": method, "batch size": size})
        return [row[what] for row in sorted(rows, key=lambda row: row["seed"])]

    batch_norm = accuracies("batch norm", small)

    def gain(over: list[float], under: list[float]) -> PairedDifference:
        return paired_difference(zip(under, over, strict=True))

    return {
        f"mini-batches of {large} over {small}": gain(accuracies("batch norm", large), batch_norm),
        f"group norm at {small}": gain(accuracies("group norm", small), batch_norm),
        f"renorm at {small}": gain(accuracies("renorm", small), batch_norm),
        f"recalibrated statistics at {small}": gain(
            accuracies("batch norm", small, RECALIBRATED), batch_norm
        ),
        f"ghost batch norm at {large}": gain(
            accuracies("ghost", large), accuracies("batch norm", large)
        ),
    }


def _part(settings: SmallBatches, name: str, gain: PairedDifference) -> Part:
    return Part(_in_full(name), f"{points(gain)} gained", _shown(settings, gain))


def _in_full(name: str) -> str:
    return name.replace(" at ", " in mini-batches of ")


def _shown(settings: SmallBatches, gain: PairedDifference) -> bool | None:
    return beyond(gain, bar=0, negligible=settings.negligible)


def _headline(settings: SmallBatches, differences: Mapping[str, PairedDifference]) -> str:
    (_, large), *remedies = differences.items()
    lost = 100 * (large.difference or 0)
    helped = [(100 * (d.difference or 0), name) for name, d in remedies if _shown(settings, d)]
    most, name = max(helped, default=(0, ""))
    best = f", most of all {_in_full(name)}, by {most:.0f} points" if helped else ""
    return (
        f"From mini-batches of {settings.batch_sizes[-1]} to {settings.batch_sizes[0]} batch norm "
        f"{'gains' if lost < 0 else 'loses'} {abs(lost):.0f} points of test accuracy; "
        f"{len(helped) or 'none'} of {len(remedies)} remedies demonstrably helped{best}."
    )


def _curves(settings: SmallBatches, trained: Records) -> Lines:
    shown = [("batch norm", MOVING), ("batch norm", RECALIBRATED)]
    shown += [("renorm", MOVING), ("group norm", MOVING), ("ghost", MOVING)]
    lines = [_curve(trained, method, what) for method, what in shown]
    first, last = lines[0].y[0], lines[0].y[-1]
    small, large = settings.batch_sizes[0], settings.batch_sizes[-1]
    return Lines(
        title=(
            f"Batch norm reaches {first:.0f}% in mini-batches of {small}, and {last:.0f}% in "
            f"mini-batches of {large}"
        ),
        x=Axis("examples in the mini-batch", logarithmic=True),
        y=Axis("test accuracy (%), median and range"),
        lines=tuple(lines),
    )


def _curve(trained: Records, method: str, what: str) -> Line:
    rows = select(trained, method=method)
    sizes = sorted({row["batch size"] for row in rows})
    found = {(row["batch size"], row["seed"]): row[what] for row in rows}
    runs = [[found[size, seed] for size in sizes] for seed in sorted({r["seed"] for r in rows})]
    if what == RECALIBRATED:
        return band(f"{method}, recalibrated", sizes, runs, scale=100)
    line = band(method, sizes, runs, scale=100)
    return replace(line, side="batch norm") if method == "batch norm" else line


def _remedies(differences: Mapping[str, PairedDifference]) -> Dots:
    return Dots(
        title="What each change adds to the accuracy of batch norm",
        x=Axis("gain in test accuracy (points), with 95% interval"),
        dots=tuple(in_points(name, d) for name, d in differences.items()),
        rule=Rule(0, "no gain"),
    )


CLAIM = Claim(
    name="small-batches",
    statement=(
        "Batch norm suffers in small mini-batches; group norm, batch renorm and recalibrated "
        "statistics do better there, and ghost batch norm does in large ones."
    ),
    sources=(
        Source("Wu and He 2018", "the error of batch norm grows fast as mini-batches shrink"),
        Source("Ioffe 2017, section 4", "in micro-batches of 4, renorm reaches 76.5%, not 74.2%"),
        Source("Wu and Johnson 2021, table 2", "at 2, recalibration takes the error to 32.0%"),
        Source("Hoffer et al. 2017", "ghost batch norm does better in large mini-batches"),
    ),
    measurement=(
        "The network is trained with each kind of normalisation at each mini-batch size, from the "
        "same weights, on the same number of examples and with a learning rate in proportion to "
        "the size. Test accuracy is measured with the moving averages, and with statistics "
        "recalibrated on training examples."
    ),
    criteria=(
        "Parts, each by the 95% interval over seeds of a paired gain in test accuracy: largest "
        "over smallest mini-batch with batch norm; at the smallest, group norm, renorm, and "
        "recalibrated statistics over batch norm; at the largest, ghost batch norm over batch "
        "norm. Shown above 0, refuted below 0.5 points; the claim holds if all parts do."
    ),
    sizes={
        "toy": SmallBatches(
            seeds=3, batch_sizes=(2, 32), examples=240, hidden=(16,), learning_rate=0.3
        ),
        "digits": SmallBatches(),
        "mnist": SmallBatches(
            data="mnist", batch_sizes=(2, 4, 16, 64, 256), examples=20_000, seeds=5
        ),
    },
    run=run,
)
