"""Accuracies in percentage points: measured after one training, and their paired differences."""

from torch import nn

from bnkit.experiments.loaders import Loaders
from bnkit.experiments.statistics import PairedDifference
from bnkit.experiments.training import Batches, Training, accuracy, train
from bnkit.observation import evaluating
from bnkit_claims.core.figures import Dot


def points(difference: PairedDifference) -> str:
    """Return the mean difference in percentage points, with its interval where there is one.

    >>> from bnkit.experiments.statistics import paired_difference
    >>> points(paired_difference([(0.5, 0.75), (0.5, 0.75), (0.25, 0.5)]))
    '+25.00 (+25.00 to +25.00) points'
    >>> points(paired_difference([(0.5, 0.75)]))
    '+25.00 points'
    """
    if difference.difference is None:
        return "an unknown number of points"
    return f"{difference.times(100):+z.2f} points"


def in_points(row: str, difference: PairedDifference, name: str = "") -> Dot:
    """Return the mean difference in percentage points with its interval, to be drawn.

    >>> from bnkit.experiments.statistics import paired_difference
    >>> dot = in_points("tanh", paired_difference([(0.5, 0.75), (0.5, 0.75), (0.25, 0.5)]))
    >>> dot.value, dot.low, dot.high
    (25.0, 25.0, 25.0)
    """
    found = difference.times(100)
    return Dot(row, name or row, found.difference, found.low, found.high)


def finished(model: nn.Module, loaders: Loaders, *, learning_rate: float, steps: int) -> bool:
    """Train `model` in place by plain SGD and return whether it got to its end.

    >>> from bnkit_claims.core.claim import ClaimSettings
    >>> from bnkit_claims.core.material import subject
    >>> drawn = subject(ClaimSettings(), hidden=[8])
    >>> model = drawn.network("plain", "relu", seed=0)
    >>> finished(model, drawn.loaders(0), learning_rate=0.1, steps=10)
    True
    """
    training = Training(learning_rate=learning_rate, steps=steps, evaluate_every=steps)
    return train(model, loaders.train, loaders.held_out, training).outcome == "finished"


def evaluated(model: nn.Module, batches: Batches) -> float:
    """Return the accuracy of `model` in eval mode.

    >>> import torch
    >>> evaluated(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
    0.5
    """
    with evaluating(model):
        return accuracy(model, batches)
