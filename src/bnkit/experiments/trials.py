"""`Trial`: one network, trained once under one setting and seed."""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bnkit.experiments.experiment import Experiment
from bnkit.experiments.loaders import seed_everything
from bnkit.experiments.own_loop import EndOfTrial
from bnkit.experiments.provenance import array_fingerprint, fingerprint, machine_of
from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.training import Training, measured, train
from bnkit.experiments.trial_logs import Tell, telling
from bnkit.observation import evaluating, preserved_random_state, preserved_torch_settings
from bnkit.references import message_of

one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class Trial:
    """All that decides one trial's numbers; `key` is a fingerprint of it and names its file.

    `arrays` is the fingerprint of the initial arrays alone. Its process tells what it measures in
    the folder `told_in`, where one is given, which decides nothing.
    """

    key: str
    experiment: Experiment
    side: Side
    activation: str
    seed: int
    training: Training
    arrays: str
    told_in: Path | None = None

    @property
    def code(self) -> str:
        """The fingerprint of what the processes have to load: the user's own code and data."""
        return fingerprint(self.experiment.identity)

    @property
    def sources(self) -> Mapping[str, str]:
        """Fingerprints of the files of the user's modules, from which the result must come."""
        return self.experiment.sources

    @property
    def name(self) -> str:
        """What it is, for people."""
        rate = f"learning rate {self.training.learning_rate:g}"
        return f"{self.side}, {self.activation}, {rate}, seed {self.seed}"

    @property
    def bundle(self) -> tuple[str, int, float]:
        """The setting and seed: both sides run on one machine, so that their times are a pair."""
        return self.activation, self.seed, self.training.learning_rate

    @property
    def not_run(self) -> TrialResult:
        """The record of this trial before it has run."""
        return TrialResult(
            self.key, self.side, self.training.learning_rate, self.activation, self.seed, "not run"
        )

    def failed(self, reason: str) -> TrialResult:
        """Return the record that this trial could not be run to its end."""
        return replace(self.not_run, outcome="failed", reason=reason)

    def run(self) -> TrialResult:
        """Return what training this network once gives; the caller's generators stay as they are.

        An error of the user's own model or data is a result too: a failed trial with its reason.
        """
        # In turn, where a program's threads run trials: all draw from the same generators.
        with (
            one_at_a_time,
            preserved_random_state(),
            preserved_torch_settings(),
            one_thread(),
        ):
            try:
                return self._run()
            except (Exception, SystemExit) as error:  # noqa: BLE001  it may be anything
                return self.failed(message_of(error))

    def _run(self) -> TrialResult:
        model = self.experiment.network(self.side, self.activation, self.seed)
        if array_fingerprint(model) != self.arrays:
            raise ValueError(
                "the network has other initial arrays here than in the process that planned the "
                "comparison: its weights must follow from the seed alone"
            )
        kept = model.state_dict()
        begun = replace(
            self.not_run,
            parameters=sum(p.numel() for p in model.parameters()),
            buffers=sum(b.numel() for name, b in model.named_buffers() if name in kept),
        )
        by_loop = self._by_own_loop if self.experiment.loop else self._by_built_in_loop
        with telling(self.told_in, self.key) as tell:
            return by_loop(begun, model, tell)

    def _by_built_in_loop(self, begun: TrialResult, model: nn.Module, tell: Tell) -> TrialResult:
        loaders = self.experiment.loaders(self.seed)
        model.to(self.training.device)
        trained = train(model, loaders.train, loaders.held_out, self.training, tell=tell)
        with evaluating(model):
            on_test = measured(model, loaders.test, self.training)
        return replace(
            begun,
            outcome=trained.outcome,
            reason=trained.reason,
            curve=trained.curve,
            metric=trained.curve.metric[-1],
            test_metric=on_test if math.isfinite(on_test) else None,
            steps=trained.steps,
            seconds=trained.seconds,
            machine=machine_of(model),
        )

    def _by_own_loop(self, begun: TrialResult, model: nn.Module, tell: Tell) -> TrialResult:
        assert self.experiment.loop is not None
        trial = self.experiment.running_trial(
            self.side, self.activation, self.seed, self.training.learning_rate, tell=tell
        )
        seed_everything(self.seed)  # again: making the twin may have drawn numbers
        with suppress(EndOfTrial):  # it is ended where it should have ended itself
            self.experiment.loop.function(model.to(trial.device), trial)
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
            machine=machine_of(model),
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: small networks are fastest that way, and processes share cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
