"""`in_stretches`: one plain training that stops now and then, so that others can look."""

from collections.abc import Iterator

from torch import nn

from bnkit.experiments.loaders import Loaders
from bnkit.experiments.training import Trained, Training, train


def in_stretches(
    model: nn.Module, loaders: Loaders, *, learning_rate: float, steps: int, every: int
) -> Iterator[Trained | None]:
    """Train `model` in place by plain SGD and yield before the first step and after `every` steps.

    It yields None first, then what training the latest stretch gave. A run that diverges ends
    there. `loaders` must be those of a named data set, whose batches are endless.

    >>> from bnkit_claims.core.claim import ClaimSettings
    >>> from bnkit_claims.core.material import subject
    >>> drawn = subject(ClaimSettings(), hidden=[8])
    >>> model, loaders = drawn.network("plain", "relu", seed=0), drawn.loaders(0)
    >>> stretches = in_stretches(model, loaders, learning_rate=0.1, steps=20, every=10)
    >>> [stretch and stretch.steps for stretch in stretches]
    [None, 10, 10]
    """
    yield None
    training = Training(learning_rate=learning_rate, steps=every, evaluate_every=every)
    for _ in range(steps // every):
        trained = train(model, loaders.train, loaders.held_out, training)
        yield trained
        if trained.outcome == "diverged":
            return
