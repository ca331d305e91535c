"""What most claims are measured on: paired networks, their data, and one plain training."""

from pathlib import Path
from typing import Any

from bnkit.experiments.experiment import Experiment, experiment_of
from bnkit.experiments.provenance import array_fingerprint
from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.settings import Settings, training_of
from bnkit.experiments.trials import Trial
from bnkit_claims.core.claim import ClaimSettings


def subject(claim: ClaimSettings, network: str = "mlp", **options: Any) -> Experiment:
    """Return what `.network(side, activation, seed)` and `.loaders(seed)` of a claim come from.

    `options` are those of `bnkit.Settings`: hidden, init, batch_size, placement, …

    >>> drawn = subject(ClaimSettings(), hidden=[20], activations=["tanh"])
    >>> len(drawn.network("batch norm", "tanh", seed=0))
    4
    """
    folder = None if claim.folder is None else Path(claim.folder)
    return experiment_of(network, claim.data, Settings(**options), folder=folder)


def trial(
    claim: ClaimSettings,
    side: Side,
    *,
    seed: int,
    learning_rate: float,
    activation: str = "relu",
    network: str = "mlp",
    **options: Any,
) -> TrialResult:
    """Return what training one side of a network once gives, as in a comparison.

    `options` are those of `bnkit.Settings`: steps, evaluate_every, optimizer, init, …
    Raises RuntimeError where the run fails (a run that diverges is a result).

    >>> trial(ClaimSettings(), "plain", seed=0, learning_rate=0.1, steps=20).outcome
    'finished'
    """
    settings = Settings(**options)
    drawn = subject(claim, network, activations=[activation], **options)
    training = training_of(settings, learning_rate, steps=drawn.source.steps)
    arrays = array_fingerprint(drawn.network(side, activation, seed))
    result = Trial("", drawn, side, activation, seed, training, arrays).run()
    if result.outcome == "failed":
        raise RuntimeError(result.reason)
    return result
