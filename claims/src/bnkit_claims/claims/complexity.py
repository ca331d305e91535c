"""Claim 19: a network must be complicated enough to gain from batch norm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedRatio, paired_ratio
from bnkit_claims.core.best_rates import (
    Run,
    StepRatio,
    edge_notes,
    own_best,
    runs_over,
    slowness,
    step_ratio,
)
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Line, Lines, Rule
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, select

Shape = tuple[int, int]  # hidden layers, units in each


@dataclass(frozen=True, kw_only=True)
class Complexity(ClaimSettings):
    """Networks of growing depth at one width, and of growing width at one depth."""

    depths: tuple[int, ...] = (1, 2, 4, 8)
    width: int = 50
    widths: tuple[int, ...] = (10, 50, 200)
    depth: int = 2
    learning_rates: tuple[float, ...] = (0.1, 0.3)
    activation: str = "relu"
    init: str = "he"  # so that the deepest plain network trains too, and its gain is not a bound
    batch_size: int = 60
    steps: int = 200
    evaluate_every: int = 2
    target: float = 0.9

    @property
    def deeper(self) -> tuple[Shape, ...]:
        """The networks that differ in depth."""
        return tuple((depth, self.width) for depth in self.depths)

    @property
    def wider(self) -> tuple[Shape, ...]:
        """The networks that differ in width."""
        return tuple((self.depth, width) for width in self.widths)


def run(settings: Complexity, run_cases: RunCases = in_turn) -> Evidence:
    """Return how the gain in steps to the target grows with depth and with width."""
    shapes = dict.fromkeys([*settings.deeper, *settings.wider])
    cases = [(*shape, *case) for shape, *case in product(shapes, SIDES, range(settings.seeds))]
    return judge(settings, run_cases(training, settings, cases))


def training(settings: Complexity, case: tuple[int, int, Side, int]) -> dict[str, Any]:
    """Return the runs of one side of one network over the learning rates."""
    depth, width, side, seed = case
    runs = runs_over(
        settings,
        side,
        seed=seed,
        rates=settings.learning_rates,
        steps=settings.steps,
        activations=[settings.activation],
        hidden=(width,) * depth,
    )
    return {"depth": depth, "width": width, "side": side, "seed": seed, "runs": runs}


Gains = Mapping[Shape, Mapping[int, StepRatio]]  # by network and seed: plain ÷ batch norm


def judge(settings: Complexity, trained: Records) -> Evidence:
    """Return the verdict: the gain grows with depth, and with width, from nothing."""
    shapes = list(dict.fromkeys((r["depth"], r["width"]) for r in trained))
    gains = {shape: _gains(settings, trained, shape) for shape in shapes}
    deeper, wider = _growth(gains, settings.deeper), _growth(gains, settings.wider)
    simplest, deepest = _pooled(gains, settings.deeper[0]), _pooled(gains, settings.deeper[-1])
    gained = simplest.beyond(1, negligible=1.1)
    first, last = _layers(settings.depths[0]), _layers(settings.depths[-1])
    return Evidence(
        headline=(
            f"To {settings.target:.0%} the plain network takes {simplest.roughly} the steps "
            f"with {first}, and {deepest.roughly} with {last}."
        ),
        parts=(
            Part("a gain that grows with depth", _doubling(deeper), _grows(deeper)),
            Part("a gain that grows with width", _doubling(wider), _grows(wider)),
            Part(
                f"no gain in the simplest network, {first}",
                simplest.without("as many steps"),
                None if gained is None else not gained,
            ),
        ),
        beside=(Beside(f"the gain with {last}", deepest.without("as many steps")),),
        notes=edge_notes(
            {
                f"{side} ({_layers(shape[0])} of {shape[1]})": _best(settings, trained, shape, side)
                for shape, side in product(shapes, SIDES)
            },
            settings.learning_rates,
        ),
        figures=(
            _chart(gains, settings.deeper, 0, "hidden layers"),
            _chart(gains, settings.wider, 1, "units in each hidden layer"),
        ),
        details=tuple(
            {"depth": depth, "width": width, "seed": seed, "gain": gain.ratio.ratio}
            for (depth, width), by_seed in gains.items()
            for seed, gain in by_seed.items()
        ),
    )


def _gains(settings: Complexity, trained: Records, shape: Shape) -> dict[int, StepRatio]:
    sides = [_best(settings, trained, shape, side) for side in SIDES]
    return {
        seed: step_ratio([(plain, sides[1][seed][1])], settings.target)
        for seed, (_, plain) in sides[0].items()
    }


def _best(
    settings: Complexity, trained: Records, shape: Shape, side: Side
) -> dict[int, tuple[float, Run]]:
    depth, width = shape
    runs = select(trained, depth=depth, width=width, side=side)
    return own_best(runs, slowness(settings.target))


def _pooled(gains: Gains, shape: Shape) -> StepRatio:
    """Return the gain of one network over its seeds."""
    by_seed = gains[shape].values()
    return StepRatio(
        paired_ratio((g.ratio.ratio, 1 if g.ratio.both else None) for g in by_seed),
        at_least=any(gain.at_least for gain in by_seed),
        at_most=any(gain.at_most for gain in by_seed),
    )


def _growth(gains: Gains, shapes: Sequence[Shape]) -> PairedRatio:
    """Return by what each doubling of the size multiplies the gain, over the seeds."""
    seeds = list(gains[shapes[0]])
    return paired_ratio((_factor(gains, shapes, seed), 1) for seed in seeds)


def _factor(gains: Gains, shapes: Sequence[Shape], seed: int) -> float | None:
    """Return 2 to the slope of log2(gain) over log2(size), by least squares; None under two."""
    known = [(shape, gains[shape][seed].ratio.ratio) for shape in shapes]
    points = [(math.log2(math.prod(s)), math.log2(gain)) for s, gain in known if gain]
    if len(points) < 2:
        return None
    # The slope does not need the mean of y: the deviations of x sum to 0.
    mean = math.fsum(x for x, _ in points) / len(points)
    spread = math.fsum((x - mean) ** 2 for x, _ in points)
    return float(2 ** (math.fsum((x - mean) * y for x, y in points) / spread))


def _grows(growth: PairedRatio) -> bool | None:
    return beyond(growth, bar=1, negligible=1.05)


def _doubling(growth: PairedRatio) -> str:
    if growth.ratio is None:
        return "unknown: no seed has two gains"
    return f"{growth} times the gain with each doubling"


def _median_gain(gains: Sequence[StepRatio]) -> str:
    known = [gain.ratio.ratio for gain in gains if gain.ratio.ratio]
    bound = "at least " if any(gain.at_least for gain in gains) else ""
    return f"{bound}{median(known):.1f}" if known else "unknown"


def _layers(depth: int) -> str:
    return "one hidden layer" if depth == 1 else f"{depth} hidden layers"


def _chart(gains: Gains, shapes: Sequence[Shape], varied: int, label: str) -> Lines:
    values = [[g.ratio.ratio for g in gains[s].values() if g.ratio.ratio] for s in shapes]
    ends = [_median_gain(list(gains[shape].values())) for shape in (shapes[0], shapes[-1])]
    first, last = shapes[0][varied], shapes[-1][varied]
    return Lines(
        title=(
            f"The gain goes from {ends[0]} to {ends[1]} times between {first} and {last} {label}"
        ),
        x=Axis(label, logarithmic=True),
        y=Axis("steps to the target, plain ÷ batch norm, median and range", logarithmic=True),
        lines=(
            Line(
                name="gain",
                x=tuple(shape[varied] for shape in shapes),
                y=tuple(median(v) if v else None for v in values),
                low=tuple(min(v, default=None) for v in values),
                high=tuple(max(v, default=None) for v in values),
            ),
        ),
        rule=Rule(1, "no gain"),
    )


CLAIM = Claim(
    name="complexity",
    statement="A network must be complicated enough to gain from batch norm.",
    sources=(
        Source("Udacity's exercise", "its network is made complicated enough to show the gain"),
        Source("Bjorck et al. 2018, section 3", "the signals of plain networks grow with depth"),
    ),
    measurement=(
        "Networks of 1 to 8 hidden layers of one width, and of two layers from narrow to wide, "
        "from He's initial weights, are trained with and without batch norm. The gain is the ratio "
        "of the steps to the target accuracy, plain ÷ batch norm, each side at its own best "
        "learning rate, which is chosen on the other seeds; a run that never gets there counts "
        "with all its steps. Its growth is the slope of the logarithms, seed by seed."
    ),
    criteria=(
        "The gain grows with depth if the 95% interval over seeds of the factor for each doubling "
        "lies above 1; a factor whose interval ends below 1.05 speaks against it; likewise for "
        "width. The simplest network gains nothing if the interval of its gain ends below 1.1; "
        "one above 1 speaks against it. The claim holds if all three do."
    ),
    sizes={
        "toy": Complexity(
            seeds=3,
            depths=(1, 2),
            width=16,
            widths=(8, 16),
            learning_rates=(0.3,),
            steps=60,
            evaluate_every=5,
            target=0.5,
        ),
        "digits": Complexity(),
        "mnist": Complexity(
            data="mnist",
            learning_rates=(0.03, 0.1, 0.3, 1.0),
            width=100,
            widths=(20, 100, 400),
            steps=600,
            evaluate_every=5,  # it takes 50 to 100 steps
        ),
    },
    run=run,
)
