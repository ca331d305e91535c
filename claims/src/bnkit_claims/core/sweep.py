"""`Sweep`: the cases of claims in processes, each result kept, to go on from when interrupted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnkit.experiments.running import run_trials
from bnkit.experiments.store import Store
from bnkit.progress import counting
from bnkit_claims.core.cases import Case, CaseResult, case_of


class Sweep:
    """Measures cases, `jobs` at a time, in processes of one thread; an `Each` for claims.

    Results are kept in the folder `out`/cases; those that are there are not measured again.
    """

    def __init__(
        self, out: Path, *, jobs: int, title: str = "cases", progress: bool = True
    ) -> None:
        self.store: Store[CaseResult] = Store(out / "cases", CaseResult.from_json)
        self.jobs = jobs
        self.title = title
        self.progress = progress

    def __call__(
        self, measure: Callable[[Any, Any], Any], settings: Any, cases: Sequence[Any]
    ) -> list[Any]:
        """Return what `measure(settings, case)` finds for each case, in their order.

        Raises RuntimeError, with the first reason, where a case fails.
        """
        planned = [case_of(measure, settings, case) for case in cases]
        self.store.prepare(case.key for case in planned)
        done = sum(self.store.load(case.key) is not None for case in planned)
        with counting(self.title, len(planned), done=done, shown=self.progress) as count:
            run_trials(planned, self.store, jobs=self.jobs, on_result=count)
        return [self._found(case) for case in planned]

    def _found(self, case: Case) -> Any:
        result = self.store.load(case.key)
        if result is None or result.outcome == "failed":
            reason = "its result is gone" if result is None else result.reason
            raise RuntimeError(f"the case {case.case} could not be measured: {reason}")
        return result.found
