"""What most claims are measured on: paired networks, their data, and plain trainings of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bnkit.experiments.experiment import Experiment, experiment_of
from bnkit.experiments.loaders import Loaders
from bnkit.experiments.provenance import array_fingerprint
from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.settings import Settings, training_of
from bnkit.experiments.training import Batches, Trained, Training, accuracy, train
from bnkit.experiments.trials import Trial
from bnkit.observation import evaluating
from bnkit_claims.core.claim import ClaimSettings


def experiment_for(claim: ClaimSettings, network: str = "mlp", **options: Any) -> Experiment:
    """Return what `.network(side, activation, seed)` and `.loaders(seed)` of a claim come from.

    `options` are those of `bnkit.Settings`. What is not given is that of the claim's own settings
    where they have it: `batch_size`, `init`, and `hidden` for the multilayer perceptron.

    >>> drawn = experiment_for(ClaimSettings(), hidden=[20], activations=["tanh"])
    >>> len(drawn.network("batch norm", "tanh", seed=0))
    4
    """
    settings = _settings_of(claim, network, ("batch_size", "init"), options)
    folder = None if claim.folder is None else Path(claim.folder)
    return experiment_of(network, claim.data, settings, folder=folder)


def trial(
    claim: ClaimSettings,
    side: Side,
    *,
    seed: int,
    learning_rate: float,
    network: str = "mlp",
    **options: Any,
) -> TrialResult:
    """Return what training one side of a network once gives, as in a comparison.

    `options` are those of `bnkit.Settings`, of which the first of the `activations` is taken, by
    default ReLU. What is not given is that of the claim's own settings, as in `subject`; `steps`
    and `evaluate_every` too. Raises RuntimeError where the run fails (a run that diverges is a
    result).

    >>> trial(ClaimSettings(), "plain", seed=0, learning_rate=0.1, steps=20).outcome
    'finished'
    """
    options = {"activations": ["relu"], **options}
    settings = _settings_of(claim, network, ("steps", "evaluate_every"), options)
    drawn = experiment_for(claim, network, **options)
    training = training_of(settings, learning_rate, steps=settings.steps)
    activation = settings.activations[0]
    arrays = array_fingerprint(drawn.network(side, activation, seed))
    result = Trial("", drawn, side, activation, seed, arrays, training).run()
    if result.outcome == "failed":
        raise RuntimeError(result.reason)
    return result


def _settings_of(
    claim: ClaimSettings, network: str, names: Sequence[str], options: Mapping[str, Any]
) -> Settings:
    """Return the settings with these options, and else with these fields of the claim's."""
    names = (*names, "hidden") if network == "mlp" else names
    own = {name: getattr(claim, name) for name in names if hasattr(claim, name)}
    # On the CPU, where the kept figures were made, whatever else is there.
    return Settings(**{"device": "cpu", **own, **options})


def train_to_end(model: nn.Module, loaders: Loaders, *, learning_rate: float, steps: int) -> bool:
    """Train `model` in place by plain SGD and return whether it got to its end.

    >>> from bnkit_claims.core.claim import ClaimSettings
    >>> from bnkit_claims.core.trainings import experiment_for
    >>> drawn = experiment_for(ClaimSettings(), hidden=[8])
    >>> model = drawn.network("plain", "relu", seed=0)
    >>> train_to_end(model, drawn.loaders(0), learning_rate=0.1, steps=10)
    True
    """
    training = Training(learning_rate=learning_rate, steps=steps, evaluate_every=steps)
    return train(model, loaders.train, loaders.held_out, training).outcome == "finished"


def accuracy_in_eval_mode(model: nn.Module, batches: Batches) -> float:
    """Return the accuracy of `model` in eval mode.

    >>> import torch
    >>> accuracy_in_eval_mode(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
    0.5
    """
    with evaluating(model):
        return accuracy(model, batches)


def in_segments(
    model: nn.Module, loaders: Loaders, *, learning_rate: float, steps: int, every: int
) -> Iterator[Trained | None]:
    """Train `model` in place by plain SGD and yield before the first step and after `every` steps.

    It yields None first, then what training the latest segment gave. A run that diverges ends
    there. `loaders` must be those of a named data set, whose batches are endless.

    >>> from bnkit_claims.core.claim import ClaimSettings
    >>> from bnkit_claims.core.trainings import experiment_for
    >>> drawn = experiment_for(ClaimSettings(), hidden=[8])
    >>> model, loaders = drawn.network("plain", "relu", seed=0), drawn.loaders(0)
    >>> segments = in_segments(model, loaders, learning_rate=0.1, steps=20, every=10)
    >>> [segment and segment.steps for segment in segments]
    [None, 10, 10]
    """
    yield None
    training = Training(learning_rate=learning_rate, steps=every, evaluate_every=every)
    for _ in range(steps // every):
        trained = train(model, loaders.train, loaders.held_out, training)
        yield trained
        if trained.outcome == "diverged":
            return
