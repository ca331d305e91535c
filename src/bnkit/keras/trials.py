"""`KerasTrial`: one Keras model, trained once under one setting and seed."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
from torch import nn

from bnkit.experiments.own_loop import EndOfTrial
from bnkit.experiments.provenance import fingerprint, machine_of
from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.trial_logs import Tell, telling
from bnkit.experiments.trials import one_at_a_time, one_thread
from bnkit.keras.experiment import (
    KerasExperiment,
    seeded_order,
    values_of,
    with_keras_settings,
)
from bnkit.keras.fitting import fit, measured
from bnkit.observation import preserved_random_state
from bnkit.references import message_of


@dataclass(frozen=True)
class KerasTrial:
    """All that decides one trial's numbers; `key` is a fingerprint of it and names its file.

    `arrays` is the fingerprint of the initial values. `given_rate` is the learning rate that is
    set, None for that of the optimizer that the model brings. `told_in` is as in `Trial`.
    """

    key: str
    experiment: KerasExperiment
    side: Side
    activation: str
    seed: int
    learning_rate: float
    given_rate: float | None
    arrays: str
    told_in: Path | None = None

    @property
    def code(self) -> str:
        """The fingerprint of what the processes have to load: the user's own code and data."""
        return fingerprint({**self.experiment.identity, "around": self.experiment.around})

    @property
    def sources(self) -> Mapping[str, str]:
        """Fingerprints of the files of the user's modules, from which the result must come."""
        return self.experiment.sources

    @property
    def name(self) -> str:
        """What it is, for people."""
        rate = f"learning rate {self.learning_rate:g}"
        return f"{self.side}, {self.activation}, {rate}, seed {self.seed}"

    @property
    def bundle(self) -> tuple[str, int, float]:
        """The setting and seed: both sides run on one machine, so that their times are a pair."""
        return self.activation, self.seed, self.learning_rate

    @property
    def not_run(self) -> TrialResult:
        """The record of this trial before it has run."""
        return TrialResult(
            self.key, self.side, self.learning_rate, self.activation, self.seed, "not run"
        )

    def failed(self, reason: str) -> TrialResult:
        """Return the record that this trial could not be run to its end."""
        return replace(self.not_run, outcome="failed", reason=reason)

    def run(self) -> TrialResult:
        """Return what training this model once gives; the caller's generators stay as they are.

        An error of the user's own model or data is a result too: a failed trial with its reason.
        """
        around = with_keras_settings(self.experiment.around)
        with one_at_a_time, preserved_random_state(), one_thread(), around:
            try:
                return self._run()
            except (Exception, SystemExit) as error:  # noqa: BLE001  it may be anything
                return self.failed(message_of(error))

    def _run(self) -> TrialResult:
        backend = self.experiment.identity["backend"].partition(" ")[0]
        if keras.backend.backend() != backend:
            raise ValueError(
                f"this process runs Keras on {keras.backend.backend()}, and the comparison was "
                f"planned on {backend}: set KERAS_BACKEND={backend} for all processes"
            )
        model = self.experiment.network(self.side, self.seed, self.given_rate)
        if values_of(model) != self.arrays:
            raise ValueError(
                "the model has other initial values here than in the process that planned the "
                "comparison: they must follow from the seed alone"
            )
        begun = replace(
            self.not_run,
            parameters=_size_of(model.trainable_weights),
            buffers=_size_of(model.non_trainable_weights),
            machine={**machine_of(nn.Module()), "backend": self.experiment.identity["backend"]},
        )
        by_loop = self._by_own_loop if self.experiment.loop else self._by_built_in_loop
        with telling(self.told_in, self.key) as tell:
            return by_loop(begun, model, tell)

    def _by_built_in_loop(self, begun: TrialResult, model: Any, tell: Tell) -> TrialResult:
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
            value = measured(model, loaders.test, experiment.metric.name)
            on_test = value if math.isfinite(value) else None
        return replace(
            begun,
            outcome=trained.outcome,
            reason=trained.reason,
            curve=trained.curve,
            metric=trained.curve.metric[-1],
            test_metric=on_test,
            steps=trained.steps,
            seconds=trained.seconds,
        )

    def _by_own_loop(self, begun: TrialResult, model: Any, tell: Tell) -> TrialResult:
        assert self.experiment.loop is not None
        trial = self.experiment.running(
            self.side, self.activation, self.seed, self.learning_rate, tell=tell
        )
        keras.utils.set_random_seed(self.seed)  # again: making the twin may have drawn numbers
        with suppress(EndOfTrial):  # it is ended where it should have ended itself
            self.experiment.loop.function(model, trial)
        curve = trial.curve
        if not curve.steps:
            raise ValueError(
                f"`train` has ended without a report of {self.experiment.metric.name!r}, which it "
                f"made in its rehearsal"
            )
        return replace(
            begun,
            outcome=trial.outcome,
            reason=trial.reason,
            curve=curve,
            metric=curve.metric[-1],
            test_metric=curve.metric[-1],
            steps=trial.last_step,
            seconds=trial.last - trial.began,
        )


def _size_of(weights: Any) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
