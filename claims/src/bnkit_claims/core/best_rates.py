"""Training over several learning rates, to compare each side at its own best one."""

from collections.abc import Callable, Mapping, Sequence
from math import fsum
from typing import Any, NamedTuple, TypedDict

from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.statistics import PairedRatio, paired_ratio
from bnkit.experiments.training import Trained
from bnkit_claims.core.claim import ClaimSettings
from bnkit_claims.core.evidence import beyond
from bnkit_claims.core.pairs import rounded
from bnkit_claims.core.trainings import trial


class Run(TypedDict):
    """One training of `length` steps: the held-out accuracy after each of `steps`, and at its end
    the test accuracy. A run that `diverged` ended early, and trained nothing.
    """

    length: int
    steps: list[int]
    accuracies: list[float]
    test: float
    diverged: bool


def run_of(found: Trained | TrialResult, *, length: int, test: float | None) -> Run:
    """Return a training of `length` steps, or fewer if it diverged, with its test accuracy."""
    return Run(
        length=length,
        steps=list(found.curve.steps),
        accuracies=[each for each in found.curve.metric if each is not None],
        test=test or 0.0,
        diverged=found.outcome == "diverged",
    )


def runs_over(
    claim: ClaimSettings,
    side: Side,
    *,
    seed: int,
    rates: Sequence[float],
    steps: int,
    **options: Any,
) -> dict[str, Run]:
    """Return the run at each learning rate, named by it; `options` are those of `trial`.

    >>> runs = runs_over(ClaimSettings(), "plain", seed=0, rates=[0.1], steps=20, evaluate_every=10)
    >>> runs["0.1"]["steps"], runs["0.1"]["diverged"]
    ([10, 20], False)
    """
    runs = {}
    for rate in rates:
        found = trial(claim, side, seed=seed, learning_rate=rate, steps=steps, **options)
        runs[str(rate)] = run_of(found, length=steps, test=found.test_metric)
    return runs


def steps_to(run: Run, target: float) -> int | None:
    """Return the first measured step at the target accuracy; None if never, or if it diverged."""
    if run["diverged"]:
        return None
    reached = (s for s, a in zip(run["steps"], run["accuracies"], strict=True) if a >= target)
    return next(reached, None)


def final_accuracy(run: Run) -> float:
    """Return the held-out accuracy at the end; 0 of a run that diverged."""
    return 0.0 if run["diverged"] else run["accuracies"][-1]


def error(run: Run) -> float:
    """Return a cost of runs: one less the held-out accuracy at the end."""
    return 1 - final_accuracy(run)


def slowness(target: float) -> Callable[[Run], float]:
    """Return a cost of runs: the steps to the target.

    A run that never gets there costs more than any that does; less, the closer it came.
    """

    def cost(run: Run) -> float:
        return steps_to(run, target) or run["length"] * (2 - final_accuracy(run))

    return cost


def own_best(
    results: Sequence[Mapping[str, Any]], cost: Callable[[Run], float]
) -> dict[int, tuple[float, Run]]:
    """Return, by seed, the best learning rate and the run at it.

    `results` have a `seed` and the `runs` over learning rates. The best rate for a seed is that of
    the least mean cost over the *other* seeds, so that no run is chosen for its own luck; equal
    costs go to the rate that comes first.

    >>> quick = Run(length=20, steps=[10, 20], accuracies=[0.9, 0.9], test=0.9, diverged=False)
    >>> slow = Run(length=20, steps=[10, 20], accuracies=[0.8, 0.9], test=0.9, diverged=False)
    >>> results = [{"seed": seed, "runs": {"0.1": slow, "1.0": quick}} for seed in range(2)]
    >>> {seed: rate for seed, (rate, _) in own_best(results, slowness(0.9)).items()}
    {0: 1.0, 1: 1.0}
    """
    best = {}
    for result in results:
        others = [r for r in results if r is not result] or [result]  # leave one seed out
        rate = min(result["runs"], key=lambda rate: fsum(cost(r["runs"][rate]) for r in others))
        best[result["seed"]] = (float(rate), result["runs"][rate])
    return dict(sorted(best.items()))


def edge_notes(
    best: Mapping[str, Mapping[int, tuple[float, Run]]], rates: Sequence[float]
) -> tuple[str, ...]:
    """Return a note on what has its best learning rate at an edge of the sweep over `rates`.

    `best` is what `own_best` found, by the name of what was trained.

    >>> run = Run(length=20, steps=[20], accuracies=[0.9], test=0.9, diverged=False)
    >>> edge_notes({"plain": {0: (0.1, run)}, "batch norm": {0: (1.0, run)}}, [0.1, 1.0, 10.0])
    ('A wider sweep might find a better learning rate than the smallest, 0.1, for plain.',)
    """
    edges = (
        {min(rates): "smallest", max(rates): "largest"} if len(rates) > 1 else {rates[0]: "only"}
    )
    found = {
        rate: [name for name, runs in best.items() if rate in {own for own, _ in runs.values()}]
        for rate in edges
    }
    found_at = " and ".join(
        f"the {edge}, {rate:g}, for {', '.join(found[rate])}"
        for rate, edge in edges.items()
        if found[rate]
    )
    return (
        (f"A wider sweep might find a better learning rate than {found_at}.",) if found_at else ()
    )


class StepRatio(NamedTuple):
    """How many times as many steps (or seconds) the first of each pair of runs took to the target.

    It is `at_least` so many where the first never got there, and `at_most` where the second did
    not: then the length of the whole run stands in for its steps.
    """

    ratio: PairedRatio
    at_least: bool
    at_most: bool

    def beyond(self, bar: float, *, negligible: float) -> bool | None:
        """Return whether it is shown to lie above `bar`, as `judging.beyond` does.

        A ratio that is only known to be at least so large refutes nothing, and one that is only
        known to be at most so large shows nothing.
        """
        found = beyond(self.ratio, bar=bar, negligible=negligible)
        # The true ratio may be larger than one that is "at least", and smaller than "at most".
        unsure = self.at_most if found else self.at_least
        return None if unsure else found

    @property
    def roughly(self) -> str:
        """The ratio to two digits; runs that never arrive on both sides leave it open."""
        unknown = self.at_least and self.at_most
        return f"{self._bound}{rounded(None if unknown else self.ratio.ratio)} times"

    def without(self, times: str) -> str:
        """Return the ratio, plain ÷ batch norm, in words: `times` is "as many" or "as long"."""
        seeds = self.ratio.both + self.ratio.neither
        never = f"neither side gets there from {self.ratio.neither} of {seeds} seeds"
        if self.ratio.ratio is None:
            return never
        ratio = f"{self} times {times} without batch norm"
        return f"{ratio}; {never}" if self.ratio.neither else ratio

    @property
    def _bound(self) -> str:
        bound = {(True, False): "at least ", (False, True): "at most "}
        return bound.get((self.at_least, self.at_most), "")

    def __str__(self) -> str:
        return f"{self._bound}{self.ratio}"


def step_ratio(
    pairs: Sequence[tuple[Run, Run]],
    target: float,
    prices: Sequence[tuple[float, float]] | None = None,
) -> StepRatio:
    """Return the ratio of steps to the target, first ÷ second, of paired runs.

    Where one of a pair never gets there, the length of its run stands in for its steps, so that
    this pair's ratio is a bound; where neither does, the pair says nothing. `prices`, such as the
    seconds of a step, weigh the steps of each pair.

    >>> slow = Run(length=20, steps=[10, 20], accuracies=[0.5, 0.6], test=0.6, diverged=False)
    >>> quick = Run(length=20, steps=[10, 20], accuracies=[0.9, 0.9], test=0.9, diverged=False)
    >>> str(step_ratio([(slow, quick)] * 3, 0.9))
    'at least 2.00 (2.00 to 2.00)'
    """
    reached = [(steps_to(first, target), steps_to(second, target)) for first, second in pairs]
    costs = [
        # A pair in which neither gets there has no ratio, and is left out of the interval.
        (p * (a or first["length"]), q * (b or second["length"])) if a or b else (None, None)
        for (first, second), (a, b), (p, q) in zip(
            pairs, reached, prices or [(1, 1)] * len(pairs), strict=True
        )
    ]
    return StepRatio(
        paired_ratio(costs),
        at_least=any(a is None and b is not None for a, b in reached),
        at_most=any(a is not None and b is None for a, b in reached),
    )
