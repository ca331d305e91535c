"""`Trial`: one network, trained once under one setting and seed."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnkit.experiments.experiment import Experiment
from bnkit.experiments.loaders import seed_everything
from bnkit.experiments.own_loop import EndOfTrial, RunningTrial
from bnkit.experiments.provenance import array_fingerprint, fingerprint, machine_of
from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.training import Trained, Training, measuring, train
from bnkit.experiments.trial_logs import Tell, telling
from bnkit.observation import evaluating, preserved_random_state, preserved_torch_settings
from bnkit.references import message_of

_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class AnyTrial(ABC):
    """All that decides the numbers of one trial, of a network of any framework.

    `key` is a fingerprint of it and names its file; `arrays` is that of the initial arrays alone.
    Its process tells what it measures in the folder `told_in`, where one is given, which decides
    nothing.
    """

    key: str
    experiment: Any
    side: Side
    activation: str
    seed: int
    arrays: str
    told_in: Path | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def rate(self) -> float:
        """The learning rate."""

    @property
    def code(self) -> str:
        """The fingerprint of what the processes have to load: the user's own code and data."""
        return fingerprint(self.experiment.identity)

    @property
    def sources(self) -> Mapping[str, str]:
        """Fingerprints of the files of the user's modules, from which the result must come."""
        found: Mapping[str, str] = self.experiment.sources
        return found

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"{self.side}, {self.activation}, learning rate {self.rate:g}, seed {self.seed}"

    @property
    def bundle(self) -> tuple[str, int, float]:
        """The setting and seed: both sides run on one machine, so that their times are a pair."""
        return self.activation, self.seed, self.rate

    @property
    def not_run(self) -> TrialResult:
        """The record of this trial before it has run."""
        return TrialResult(self.key, self.side, self.rate, self.activation, self.seed, "not run")

    def failed(self, reason: str) -> TrialResult:
        """Return the record that this trial could not be run to its end."""
        return replace(self.not_run, outcome="failed", reason=reason)

    def run(self) -> TrialResult:
        """Return what training this network once gives; the caller's generators stay as they are.

        An error of the user's own model or data is a result too: a failed trial with its reason.
        """
        # In turn, where a program's threads run trials: all draw from the same generators.
        with (
            _one_at_a_time,
            preserved_random_state(),
            preserved_torch_settings(),
            one_thread(),
            self._settings(),
        ):
            try:
                with telling(self.told_in, self.key) as tell:
                    return self._run(tell)
            except (Exception, SystemExit) as error:  # noqa: BLE001  it may be anything
                return self.failed(message_of(error))

    def _settings(self) -> AbstractContextManager[object]:
        """Return a context in which the framework has the settings of the plan."""
        return nullcontext()

    @abstractmethod
    def _run(self, tell: Tell) -> TrialResult:
        """Return what training the network gives, and tell its numbers as they come."""

    def _check_arrays(self, found: str) -> None:
        """Raise ValueError unless the network that was drawn begins as it was planned."""
        if found != self.arrays:
            raise ValueError(
                "the network has other initial arrays here than in the process that planned the "
                "comparison: its weights must follow from the seed alone"
            )

    def _of_built_in_loop(
        self, begun: TrialResult, trained: Trained, on_test: float | None
    ) -> TrialResult:
        return replace(
            begun,
            outcome=trained.outcome,
            reason=trained.reason,
            curve=trained.curve,
            metric=trained.curve.metric[-1],
            test_metric=on_test if on_test is not None and math.isfinite(on_test) else None,
            steps=trained.steps,
            seconds=trained.seconds,
        )

    def _by_own_loop(self, begun: TrialResult, model: Any, trial: RunningTrial) -> TrialResult:
        """Return what the user's own loop reports of a model that is where it trains."""
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


@dataclass(frozen=True)
class Trial(AnyTrial):
    """A trial of a network of PyTorch."""

    experiment: Experiment
    training: Training

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.training.learning_rate

    def _run(self, tell: Tell) -> TrialResult:
        model = self.experiment.network(self.side, self.activation, self.seed)
        self._check_arrays(array_fingerprint(model))
        kept = model.state_dict()
        begun = replace(
            self.not_run,
            parameters=sum(p.numel() for p in model.parameters()),
            buffers=sum(b.numel() for name, b in model.named_buffers() if name in kept),
        )
        if self.experiment.loop is None:
            found = self._trained(begun, model.to(self.training.device), tell)
        else:
            trial = self.experiment.running_trial(
                self.side, self.activation, self.seed, self.rate, tell=tell
            )
            seed_everything(self.seed)  # again: making the twin may have drawn numbers
            found = self._by_own_loop(begun, model.to(trial.device), trial)
        return replace(found, machine=machine_of(model))

    def _trained(self, begun: TrialResult, model: nn.Module, tell: Tell) -> TrialResult:
        loaders = self.experiment.loaders(self.seed)
        trained = train(model, loaders.train, loaders.held_out, self.training, tell=tell)
        with evaluating(model):
            on_test = measuring(model, self.training)(loaders.test)
        return self._of_built_in_loop(begun, trained, on_test)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: small networks are fastest that way, and processes share cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
