"""Claim 13: batch norm belongs before the activation rather than after it, by network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit.surgery.addition import Placement
from bnkit_claims.core.best_rates import (
    Run,
    StepRatio,
    edge_notes,
    error,
    own_best,
    runs_over,
    slowness,
    step_ratio,
)
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Lines, Rule, accuracy_chart, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part
from bnkit_claims.core.pairs import Records, points, select

BEFORE: Placement = "before_activation"
AFTER: Placement = "after_activation"
PLACE: Mapping[Placement, str] = {BEFORE: "before", AFTER: "after"}
Winner = Literal["before", "after", "neither"]
Trainee = tuple[str, str, int]  # network, activation, training steps


@dataclass(frozen=True, kw_only=True)
class Placements(ClaimSettings):
    """The networks, each with its activation and its training steps, and the learning rates."""

    networks: tuple[Trainee, ...] = (
        ("mlp", "relu", 168),
        ("mlp", "sigmoid", 168),
        ("vgg", "relu", 120),
        ("resnet", "relu", 120),
    )
    learning_rates: tuple[float, ...] = (0.1, 0.3)
    batch_size: int = 32
    evaluations: int = 40
    target: float = 0.9
    seeds: int = 4


def run(settings: Placements, run_cases: RunCases = in_turn) -> Evidence:
    """Return what either placement gives, by network."""
    seeds = range(settings.seeds)
    cases = [(*trainee, *c) for trainee, *c in product(settings.networks, (BEFORE, AFTER), seeds)]
    return judge(settings, run_cases(training, settings, cases))


def training(settings: Placements, case: tuple[str, str, int, Placement, int]) -> dict[str, Any]:
    """Return the runs of one network with one placement over the learning rates."""
    network, activation, steps, placement, seed = case
    runs = runs_over(
        settings,
        "batch norm",
        seed=seed,
        rates=settings.learning_rates,
        network=network,
        activations=[activation],
        placement=placement,
        steps=steps,
        evaluate_every=steps // settings.evaluations,
    )
    name = _name((network, activation, steps))
    return {"network": name, "placement": placement, "seed": seed, "runs": runs}


def _name(trainee: Trainee) -> str:
    network, activation, _ = trainee
    return f"{network} with {activation}"


@dataclass(frozen=True)
class Contest:
    """What one network shows: `steps` are after ÷ before, `accuracy` is before − after.

    `before` and `after` are the runs at the rate of the fewest steps, `ends` the test accuracies
    of (after, before) at the rate of the best end.
    """

    before: tuple[Run, ...]
    after: tuple[Run, ...]
    ends: tuple[tuple[float, float], ...]
    steps: StepRatio

    @property
    def accuracy(self) -> PairedDifference:
        """By how much the test accuracy at the end is higher before the activation."""
        return paired_difference(self.ends)

    @property
    def winner(self) -> Winner | None:
        """Which is better in steps or in accuracy and worse in neither; None if that is unknown."""
        found = {self._quicker(), self._higher()}
        if found >= {"before", "after"}:
            return None
        return "before" if "before" in found else "after" if "after" in found else _same(found)

    def _quicker(self) -> Winner | None:
        if self.steps.beyond(1, negligible=1) is not None:
            return "before" if self.steps.beyond(1, negligible=1) else "after"
        low, high = self.steps.ratio.low, self.steps.ratio.high
        near = low is not None and high is not None and low > 1 / 1.1 and high < 1.1
        return "neither" if near else None

    def _higher(self) -> Winner | None:
        low, high = self.accuracy.low, self.accuracy.high
        if low is None or high is None:
            return None
        if self.accuracy.excludes_zero:
            return "before" if low > 0 else "after"
        return "neither" if max(-low, high) < 0.002 else None


def _same(found: set[Winner | None]) -> Winner | None:
    return "neither" if found == {"neither"} else None


def judge(settings: Placements, trained: Records) -> Evidence:
    """Return the verdict: before the activation is better, network by network."""
    contests = {name: _contest(settings, trained, name) for name in map(_name, settings.networks)}
    return Evidence(
        headline=_headline(contests),
        parts=tuple(_part(settings, *named) for named in contests.items()),
        notes=(*_against(contests), *_edges(settings, trained)),
        figures=(_ratios(contests), _curves(settings, contests)),
        details=tuple(
            {
                "network": result["network"],
                "placement": result["placement"],
                "seed": result["seed"],
                "test accuracies": {rate: run["test"] for rate, run in result["runs"].items()},
            }
            for result in trained
        ),
    )


def _edges(settings: Placements, trained: Records) -> tuple[str, ...]:
    best = {
        f"{name} ({PLACE[placement]})": own_best(
            select(trained, network=name, placement=placement), error
        )
        for name, placement in product(map(_name, settings.networks), PLACE)
    }
    return edge_notes(best, settings.learning_rates)


def _contest(settings: Placements, trained: Records, name: str) -> Contest:
    before, after = (
        select(trained, network=name, placement=placement) for placement in (BEFORE, AFTER)
    )
    quickest = [_best(results, slowness(settings.target)) for results in (before, after)]
    highest = [_best(results, error) for results in (before, after)]
    return Contest(
        before=quickest[0],
        after=quickest[1],
        ends=tuple((a["test"], b["test"]) for b, a in zip(*highest, strict=True)),
        steps=step_ratio([(a, b) for b, a in zip(*quickest, strict=True)], settings.target),
    )


def _best(results: Records, cost: Callable[[Run], float]) -> tuple[Run, ...]:
    return tuple(run for _, run in own_best(results, cost).values())


_PLACES: Mapping[Winner | None, str] = {
    "before": "before the activation in {count} ({names})",
    "after": "after the activation in {count} ({names})",
    "neither": "neither in {count}",
    None: "not shown in {count}",
}


def _headline(contests: Mapping[str, Contest]) -> str:
    found = ", ".join(
        place.format(count=len(names), names=", ".join(names))
        for winner, place in _PLACES.items()
        if (names := _won(contests, winner))
    )
    return f"Of {len(contests)} networks, the better place for batch norm is {found}."


def _won(contests: Mapping[str, Contest], winner: Winner | None) -> list[str]:
    return [name for name, contest in contests.items() if contest.winner == winner]


def _part(settings: Placements, name: str, contest: Contest) -> Part:
    return Part(
        what=f"better before the activation in {name}",
        figures=(
            f"steps to {settings.target:.0%}, after ÷ before: {contest.steps}; "
            f"final accuracy, before − after: {points(contest.accuracy)}"
        ),
        shown=contest.winner and contest.winner == "before",
    )


def _against(contests: Mapping[str, Contest]) -> tuple[str, ...]:
    names = ", ".join(_won(contests, "after"))
    note = (
        "Contrary to its sources, Ioffe and Szegedy and Udacity's lesson, after the activation is "
        f"better in {names}, as fast.ai says."
    )
    return (note,) if names else ()


def _ratios(contests: Mapping[str, Contest]) -> Dots:
    words = {"before": "before", "after": "after", "neither": "no matter", None: "open"}
    won = ", ".join(f"{name}: {words[c.winner]}" for name, c in contests.items())
    return Dots(
        title=f"Where batch norm is better: {won}",
        x=Axis("steps to the target, after ÷ before the activation, with 95% interval", True),
        dots=tuple(
            Dot(name, words[c.winner], c.steps.ratio.ratio, c.steps.ratio.low, c.steps.ratio.high)
            for name, c in contests.items()
        ),
        rule=Rule(1, "equal"),
    )


def _curves(settings: Placements, contests: Mapping[str, Contest]) -> Lines:
    lines = [
        band(label, _steps(runs), [r["accuracies"] for r in runs], panel=name, scale=100)
        for name, contest in contests.items()
        for label, runs in {"before": contest.before, "after": contest.after}.items()
    ]
    return accuracy_chart(
        "Accuracy along training with batch norm before and after the activation",
        lines,
        rule=(settings.target, "target"),
    )


def _steps(runs: Sequence[Run]) -> Sequence[int]:
    """Return the steps of the longest run: one that diverged ended early."""
    return max((run["steps"] for run in runs), key=len)


CLAIM = Claim(
    name="placement",
    statement="Batch norm belongs before the activation, not after it.",
    sources=(
        Source("Ioffe and Szegedy 2015, section 3.2", "it normalises the input of the activation"),
        Source("Udacity's lesson", "it goes between the weights and the activation"),
        Source("fast.ai, lesson 3", "it goes after the activation"),
        Source("Mishkin's CaffeNet benchmark", "after is better in CaffeNet, before in GoogLeNet"),
    ),
    measurement=(
        "Each network is trained with batch norm before and after its activations, from the same "
        "weights on the same mini-batches, at each learning rate of a sweep. Each placement at its "
        "own best rate, chosen on the other seeds, they are compared seed by seed: in steps to the "
        "target accuracy, where a run that never gets there counts with all its steps, and in test "
        "accuracy at the end."
    ),
    criteria=(
        "A network speaks for the claim if the 95% interval over seeds shows fewer steps or a "
        "higher accuracy before the activation, and neither the other way round. It speaks against "
        "it if that is so after the activation, or if the steps agree within a tenth and the "
        "accuracies within 0.2 points. The claim holds if every network speaks for it."
    ),
    sizes={
        "toy": Placements(
            seeds=3,
            networks=(("mlp", "relu", 48), ("mlp", "sigmoid", 48)),
            learning_rates=(0.3,),
            evaluations=12,
            target=0.5,
        ),
        "digits": Placements(),
        "mnist": Placements(
            data="mnist",
            networks=(
                ("mlp", "relu", 400),
                ("mlp", "sigmoid", 400),
                ("resnet", "relu", 160),
            ),
            learning_rates=(0.03, 0.1, 0.3, 1.0),
            evaluations=16,
            seeds=3,
        ),
    },
    run=run,
)
