"""How far the inputs of a sigmoid unit move over training: the paper's figure 1, b and c."""

from bnkit_claims.claims.covariate_shift import CovariateShift, Kind, watch
from bnkit_claims.published.experiment import BySeed, PublishedExperiment, Quantity

SETTINGS = CovariateShift(
    data="mnist",
    activations=("sigmoid",),
    learning_rates=(0.1,),
    init="normal:0.05",
    steps=10_000,
    every=500,
    seeds=3,
)
SIDES: tuple[Kind, ...] = ("plain", "batch norm")


def quantity(side: Kind, *, in_spreads: bool) -> str:
    """Return the name of the mean move of the percentiles in one network.

    >>> quantity("plain", in_spreads=False)
    'plain, move of a percentile in 500 steps'
    """
    unit = ", in spreads of the unit" if in_spreads else ""
    return f"{side}, move of a percentile in {SETTINGS.every:,} steps{unit}"


def moves(settings: CovariateShift, seed: int) -> dict[str, float | None]:
    """Return how far the percentiles move in either network, trained from the same arrays."""
    found: dict[str, float | None] = {}
    for side in SIDES:
        seen = watch(settings, (side, "sigmoid", seed))
        found[quantity(side, in_spreads=False)] = seen["drift"]
        found[quantity(side, in_spreads=True)] = seen["drift_in_spreads"]
    return found


EXPERIMENT = PublishedExperiment(
    "paper-percentiles",
    "three hidden layers of 100 sigmoid units: percentiles 15, 50 and 85, 10,000 steps",
    source="Ioffe and Szegedy 2015, section 4.1, figures 1b and 1c",
    quantities=tuple(
        Quantity(quantity(side, in_spreads=in_spreads), unit, None)
        for in_spreads, unit in ((False, "input"), (True, "spreads"))
        for side in SIDES
    ),
    note=(
        "The paper draws the percentiles of one typical unit of the last hidden layer, which are "
        "more stable with batch norm. Ours are the mean over all its 100 units of how far the "
        "three percentiles move from one measurement to the next, on 1,000 held-out images by "
        "whose statistics batch norms normalise; a unit's spread is the distance of the outer two "
        "before the move. The setting is that of paper-mnist, for a fifth of its 50,000 "
        "steps."
    ),
    run=BySeed(moves, SETTINGS),
)
