"""`KerasTrial`: one Keras model, trained once under one setting and seed."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import keras
from torch import nn

from bnkit.experiments.provenance import fingerprint, machine_of
from bnkit.experiments.results import TrialResult
from bnkit.experiments.trial_logs import Tell
from bnkit.experiments.trials import AnyTrial
from bnkit.keras.experiment import KerasExperiment
from bnkit.keras.fitting import fit, measured
from bnkit.keras.provenance import values_of, with_keras_settings
from bnkit.keras.sources import seeded_order


@dataclass(frozen=True)
class KerasTrial(AnyTrial):
    """A trial of a Keras model.

    `given_rate` is the learning rate that is set, None for that of the optimizer that the model
    brings, which is `learning_rate` then.
    """

    experiment: KerasExperiment
    learning_rate: float
    given_rate: float | None

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate

    @property
    def code(self) -> str:
        """The fingerprint of what the processes have to load, and of Keras' own settings."""
        return fingerprint({**self.experiment.identity, "around": self.experiment.around})

    def _settings(self) -> AbstractContextManager[object]:
        return with_keras_settings(self.experiment.around)

    def _run(self, tell: Tell) -> TrialResult:
        backend = self.experiment.identity["backend"].partition(" ")[0]
        if keras.backend.backend() != backend:
            raise ValueError(
                f"this process runs Keras on {keras.backend.backend()}, and the comparison was "
                f"planned on {backend}: set KERAS_BACKEND={backend} for all processes"
            )
        model = self.experiment.network(self.side, self.seed, self.given_rate)
        self._check_arrays(values_of(model))
        begun = replace(
            self.not_run,
            parameters=_size_of(model.trainable_weights),
            buffers=_size_of(model.non_trainable_weights),
            machine={**machine_of(nn.Module()), "backend": self.experiment.identity["backend"]},
        )
        if self.experiment.loop is None:
            return self._trained(begun, model, tell)
        trial = self.experiment.running(self.side, self.activation, self.seed, self.rate, tell=tell)
        keras.utils.set_random_seed(self.seed)  # again: making the twin may have drawn numbers
        return self._by_own_loop(begun, model, trial)

    def _trained(self, begun: TrialResult, model: Any, tell: Tell) -> TrialResult:
        experiment, loaders = self.experiment, self.experiment.loaders(self.seed)
        assert experiment.steps is not None
        keras.utils.set_random_seed(self.seed)  # again: making the data may have drawn numbers
        trained = fit(
            model,
            loaders.train,
            loaders.held_out,
            experiment.settings,
            metric=experiment.metric.name,
            steps=experiment.steps,
            order=seeded_order(self.seed, shuffle=experiment.settings.shuffle),
            tell=tell,
        )
        on_test = trained.curve.metric[-1]
        if loaders.test is not loaders.held_out:
            on_test = measured(model, loaders.test, experiment.metric.name)
        return self._of_built_in_loop(begun, trained, on_test)


def _size_of(weights: Any) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
