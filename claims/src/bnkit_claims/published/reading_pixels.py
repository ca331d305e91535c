"""Recurrent batch norm on MNIST read pixel by pixel, at a sixteenth of the published length."""

from dataclasses import replace
from functools import partial

from bnkit_claims.claims.recurrent import Kind, Recurrent, read
from bnkit_claims.core.cases import InProcesses, Repetition
from bnkit_claims.core.pixel_lstm import ORDERS, Order
from bnkit_claims.published.experiment import Measured, PublishedExperiment, Quantity

SIDES: dict[Kind, str] = {"plain": "LSTM", "gamma 0.1": "BN-LSTM"}
PUBLISHED: dict[tuple[Order, Kind], float] = {
    ("in order", "plain"): 98.9,
    ("in order", "gamma 0.1"): 99.0,
    ("permuted", "plain"): 90.2,
    ("permuted", "gamma 0.1"): 95.4,
}
LENGTH = Recurrent(data="mnist", pool=4, hidden=100, steps=1650, every=550, seeds=3)


def quantity(order: Order, kind: Kind) -> str:
    """Return the name of a test accuracy: that of one network on one order of the pixels.

    >>> quantity("permuted", "gamma 0.1")
    'BN-LSTM, pixels permuted, test accuracy'
    """
    return f"{SIDES[kind]}, pixels {order}, test accuracy"


def test_accuracies(settings: Recurrent, how: Repetition) -> Measured:
    """Return the test accuracy in percent of each network, order and seed."""
    settings = replace(settings, **how.options)
    cases = [
        (order, kind, seed) for order in ORDERS for kind in SIDES for seed in range(settings.seeds)
    ]
    values: dict[str, tuple[float, ...]] = {}
    for row in InProcesses(how)(read, settings, cases):
        name = quantity(row["order"], row["kind"])
        values[name] = (*values.get(name, ()), round(100 * row["test"], 4))
    return Measured(values)


EXPERIMENT = PublishedExperiment(
    name="recurrent-mnist",
    title="LSTM and BN-LSTM of 100 units on 49 pixels, RMSProp, 3 epochs",
    source="Cooijmans et al. 2017, section 5.1, table 1",
    quantities=tuple(
        Quantity(quantity(order, kind), "%", accuracy)
        for (order, kind), accuracy in PUBLISHED.items()
    ),
    note=(
        "At reduced length: the published figures are of 784 steps, one for each pixel of "
        "28×28, and 200 epochs; ours are of 49 steps, the images averaged over squares of 4×4 "
        "pixels, and 3 epochs. Units, initial weights, RMSProp at 0.001 with momentum 0.9, "
        "clipping at 1 and the mini-batch of 100 are the published ones; the noise of the "
        "initial state is here in either order. So compare the networks with each other, not "
        "ours with theirs."
    ),
    run=partial(test_accuracies, LENGTH),
)
