"""`Sweep`: the trials of a comparison, of any framework, run with progress and gathered."""

import math
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bnkit.experiments.leases import Leases
from bnkit.experiments.metrics import Metric
from bnkit.experiments.own_loop import Train, listed, own_loop
from bnkit.experiments.processes import run_trials
from bnkit.experiments.provenance import environment, usable_cores
from bnkit.experiments.results import TrialResult
from bnkit.experiments.settings import Settings, Target, check_count, check_positive
from bnkit.experiments.store import Store
from bnkit.experiments.summary import Comparison, Recipe, own_best
from bnkit.experiments.trial_logs import Log, TrialLogs
from bnkit.experiments.trials import AnyTrial
from bnkit.experiments.verdict import LOOKS
from bnkit.progress import Count, counting

NAMED_TARGET = 0.9  # the accuracy to reach on a named data set


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a comparison; `comparison` holds what had finished, the rest as not run."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison


@dataclass(frozen=True)
class Sweep:
    """The trials of one comparison, named but not yet run, and the store of their results.

    With `seeds="auto"` these are the trials of the first look; `grown(m, n)` gives those of the
    seeds from m to n − 1.
    """

    settings: Settings
    trials: tuple[AnyTrial, ...]
    store: Store[TrialResult]
    description: dict[str, object]
    recipe: Recipe
    command: str
    metric: Metric
    target: float | None = None  # None is the first side's own best
    grown: Callable[[int, int], tuple[AnyTrial, ...]] | None = None

    def run(
        self,
        *,
        jobs: int | None = None,
        progress: bool = True,
        trial_timeout: float | None = None,
        executor: Executor | None = None,
        code_by_value: bool = False,
        log: Log | None = None,
    ) -> Comparison:
        """Run what has no result yet, `jobs` at a time (one a core by default); return them all.

        With `seeds="auto"` seeds are added until the verdict is reached, or the budget spent.
        The other options are those of `compare`. Raises Interrupted, with what had finished, on
        Ctrl-C.
        """
        if jobs is not None and executor is not None:
            raise ValueError(
                f"`jobs` is {jobs!r}, processes of this machine, and `executor` brings workers of "
                f"its own: leave one out"
            )
        jobs = usable_cores() if jobs is None else jobs
        check_count("jobs", jobs)
        if trial_timeout is not None:
            check_positive("trial_timeout", trial_timeout)
        ends = time.monotonic() + (self.settings.budget or math.inf)
        folder = self.store.folder
        logs = TrialLogs(
            folder / "running", self.metric, log=log, boards=folder.parent / "tensorboard"
        )
        trials: list[AnyTrial] = []
        results: dict[str, TrialResult] = {}
        try:
            for more in self._looks():
                trials += more
                results |= self.store.prepare(trial.key for trial in more)
                waiting = [trial for trial in more if trial.key not in results]
                done = len(trials) - len(waiting)
                if progress or log is not None:
                    logs.add(waiting)
                    waiting = [replace(trial, told_in=logs.folder) for trial in waiting]
                with counting("trials", len(trials), done=done, shown=progress) as count:
                    results |= run_trials(
                        waiting,
                        self.store,
                        jobs=jobs,
                        on_result=_both(logs.end, count),
                        trial_timeout=trial_timeout,
                        executor=executor,
                        code_by_value=code_by_value,
                        say=_noting(logs, count),
                    )
                found = self._comparison(trials, results)
                if found.settled or time.monotonic() > ends:
                    break
        except KeyboardInterrupt:
            raise Interrupted(self.collect()) from None
        finally:
            logs.close()
        return found

    def _looks(self) -> Iterator[Sequence[AnyTrial]]:
        """Yield the trials that each look adds to those before."""
        yield self.trials
        if self.grown is not None:
            for before, seeds in pairwise(LOOKS):
                yield self.grown(before, seeds)

    def collect(self) -> Comparison:
        """Return the comparison of the results that are there; the other trials are not run.

        Of those that run at this moment, the reason says where and since when.
        """
        trials: list[AnyTrial] = []
        results: dict[str, TrialResult] = {}
        for more in self._looks():
            found = self.store.results(trial.key for trial in more)
            if trials and not found:
                break
            trials, results = [*trials, *more], {**results, **found}
        leases = Leases(self.store.folder)
        for trial in trials:
            if trial.key not in results and (holder := leases.holder(trial.key)) is not None:
                where = f"runs on {holder.host} since {holder.since}"
                results[trial.key] = replace(trial.not_run, reason=where)
        return self._comparison(trials, results)

    def _comparison(
        self, trials: Sequence[AnyTrial], results: Mapping[str, TrialResult]
    ) -> Comparison:
        found = tuple(results.get(trial.key, trial.not_run) for trial in trials)
        return Comparison(
            settings=self.description,
            environment=environment(),
            target=own_best(found, self.metric) if self.target is None else self.target,
            command=self.command,
            trials=found,
            recipe=self.recipe,
            own_target=self.target is None,
            margin=self.settings.margin,
            looks=1 if self.grown is None else len(LOOKS),
            metric=self.metric,
        )


def _both(one: Callable[[Any], object], other: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda result: (one(result), other(result))


def _noting(logs: TrialLogs, count: Count) -> Callable[[str], object]:
    """Return what is told of trials that run for long: else the bar notes the last numbers."""

    def say(told: str) -> None:
        latest = logs.look()
        count.say(latest or told)

    return say


def planned_and_run(
    plan: Callable[..., Sweep],
    settings: Settings,
    *,
    given: Container[str],
    train: Train | None,
    sweep: Mapping[str, Sequence[Any]],
    out: Path | str | None,
    log: Log | None,
    **running: Any,
) -> Comparison:
    """Return the comparison that `plan` makes of a `loop` and a folder `out`, run.

    `given` are the settings that the user has given; `running` are other options of `Sweep.run`.
    Raises ValueError, as `compare` does, for what would do nothing.
    """
    if sweep and train is None:
        raise ValueError(
            f"`sweep` has {listed(sweep)}, and there is no `train` that reads trial.settings: pass "
            f"a loop of your own, or leave it out"
        )
    if log == "tensorboard" and out is None:
        raise ValueError("`log` is 'tensorboard', which writes beside the results: pass `out`")
    loop = None if train is None else own_loop(train, settings, sweep, given=given)
    with tempfile.TemporaryDirectory(prefix="bnkit-") as temporary:
        return plan(loop=loop, out=out or temporary).run(log=log, **running)


def target_of(wanted: Target | None, metric: Metric, *, is_own: bool) -> float | None:
    """Return the target of a comparison; None is the first side's own best.

    That is so where it is "best", or left out for data or a loop of the user's own. Raises
    ValueError for what no share can reach.

    >>> from bnkit.experiments.metrics import ACCURACY
    >>> target_of(None, ACCURACY, is_own=False), target_of("best", ACCURACY, is_own=False)
    (0.9, None)
    """
    if wanted == "best" or (wanted is None and is_own):
        return None
    target = NAMED_TARGET if wanted is None else wanted
    if metric.percent and not 0 < target <= 1:
        raise ValueError(f"`target` is {target!r}: pass a number above 0 and up to 1")
    return target
