"""`Case`: one measurement of a claim, and how many are run: in turn, or in processes and kept."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bnkit.experiments import provenance
from bnkit.experiments.processes import run_trials
from bnkit.experiments.provenance import usable_cores
from bnkit.experiments.settings import check_count
from bnkit.experiments.store import Store
from bnkit.experiments.trials import one_thread
from bnkit.observation import preserved_random_state
from bnkit.progress import counting
from bnkit.references import message_of
from bnkit.source_code import fingerprint_within_module, own_sources


@dataclass(frozen=True)
class CaseResult:
    """What one case gave: `found`, or the `reason` why it failed."""

    key: str
    outcome: Literal["finished", "failed"]
    found: Any = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "CaseResult":
        """Return the record that `to_json` wrote down."""
        return cls(**fields)


@dataclass(frozen=True)
class Case:
    """A measuring function with its arguments; `key` is a fingerprint of it and names its file."""

    key: str
    code: str
    measure: Callable[[Any, Any], Any]
    settings: Any
    case: Any
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"case {self.case}"

    @property
    def bundle(self) -> str:
        """A case runs by itself."""
        return self.key

    def run(self) -> CaseResult:
        """Return what is found; an error is a result too: a failed case with its reason."""
        try:
            (found,) = in_turn(self.measure, self.settings, [self.case])
        except Exception as error:  # noqa: BLE001  it may be anything
            return self.failed(message_of(error))
        return CaseResult(self.key, "finished", found)

    def failed(self, reason: str) -> CaseResult:
        """Return the record that this case could not be measured."""
        return CaseResult(self.key, "failed", reason=reason)


def case_of(measure: Callable[[Any, Any], Any], settings: Any, case: Any) -> Case:
    """Return the case; its key changes with the settings, the case, and the code that measures."""
    code = fingerprint_within_module(measure)
    # Not the folder of the data nor the number of seeds: a case gives the same numbers with others.
    decides = {
        **provenance.versions(),
        "code": code,
        "settings": settings.decisive,
        "case": case,
    }
    return Case(provenance.fingerprint(decides), code, measure, settings, case)


def in_turn(measure: Callable[[Any, Any], Any], settings: Any, cases: Sequence[Any]) -> list[Any]:
    """Return what `measure(settings, case)` finds for each case; the generators stay as they are.

    >>> in_turn(lambda settings, case: settings * case, 2, [1, 2, 3])
    [2, 4, 6]
    """
    with preserved_random_state(), one_thread():
        return [measure(settings, case) for case in cases]


@dataclass(frozen=True)
class Repetition:
    """How to measure: over how many seeds, in how many processes, and where results are kept.

    `out` is the folder of the results; what is there is not measured again. `folder` is where the
    files of MNIST and Fashion-MNIST lie, `seeds` is None for the own number of each claim or
    experiment, and `jobs` counts processes of one thread, by default one a core. `title` names the
    progress bar. `trial_timeout`, `executor` and `code_by_value` are those of `run_trials`. Raises
    ValueError for `seeds` or `jobs` below 1.
    """

    out: Path
    folder: Path | None = None
    seeds: int | None = None
    jobs: int = field(default_factory=usable_cores)
    progress: bool = True
    title: str = "cases"
    trial_timeout: float | None = None
    executor: Executor | None = None
    code_by_value: bool = False

    def __post_init__(self) -> None:
        check_count("jobs", self.jobs)
        if self.seeds is not None:
            check_count("seeds", self.seeds)

    @property
    def running(self) -> dict[str, Any]:
        """The options of the `run` of a sweep: an `executor` brings workers of its own."""
        return {
            "jobs": self.jobs if self.executor is None else None,
            "progress": self.progress,
            "trial_timeout": self.trial_timeout,
            "executor": self.executor,
            "code_by_value": self.code_by_value,
        }

    @property
    def options(self) -> dict[str, Any]:
        """The settings of a claim that it decides: `folder`, and `seeds` where it is given."""
        folder = None if self.folder is None else str(self.folder.absolute())
        return {"folder": folder} if self.seeds is None else {"folder": folder, "seeds": self.seeds}


class InProcesses:
    """Measures the cases of one claim or experiment as `how` says; a `RunCases`.

    Results are kept in the folder `how.out`/cases.
    """

    def __init__(self, how: Repetition) -> None:
        self.store: Store[CaseResult] = Store(how.out / "cases", CaseResult.from_json)
        self.how = how

    def __call__(
        self, measure: Callable[[Any, Any], Any], settings: Any, cases: Sequence[Any]
    ) -> list[Any]:
        """Return what `measure(settings, case)` finds for each case, in their order.

        Raises RuntimeError, with the first reason, where a case fails.
        """
        sources = own_sources()  # first: an edit between this and the keys is noticed
        planned = [replace(case_of(measure, settings, case), sources=sources) for case in cases]
        results = self.store.prepare(case.key for case in planned)
        waiting = [case for case in planned if case.key not in results]
        how, done = self.how, len(results)
        with counting(how.title, len(planned), done=done, shown=how.progress) as count:
            results |= run_trials(
                waiting,
                self.store,
                jobs=how.jobs,
                on_result=count,
                trial_timeout=how.trial_timeout,
                executor=how.executor,
                code_by_value=how.code_by_value,
                say=count.say,
            )
        return [_found(case, results[case.key]) for case in planned]


def _found(case: Case, result: CaseResult) -> Any:
    if result.outcome == "failed":
        raise RuntimeError(f"the case {case.case} could not be measured: {result.reason}")
    return result.found
