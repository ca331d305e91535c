"""`Sweep`: the cases of claims in processes, each result kept, to go on from when interrupted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnkit.experiments.results import Store
from bnkit.experiments.trials import run_trials
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
        results = self.store.prepare(case.key for case in planned)
        waiting = [case for case in planned if case.key not in results]
        done = len(results)
        with counting(self.title, len(planned), done=done, shown=self.progress) as count:
            results |= run_trials(waiting, self.store, jobs=self.jobs, on_result=count)
        return [_found(case, results[case.key]) for case in planned]


def _found(case: Case, result: CaseResult) -> Any:
    if result.outcome == "failed":
        raise RuntimeError(f"the case {case.case} could not be measured: {result.reason}")
    return result.found
