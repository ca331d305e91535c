"""Claim 18: batch norm makes a network better in the end, not only faster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit_claims.core.best_rates import Run, edge_notes, error, own_best, runs_over
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Lines, Rule, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, points, select


@dataclass(frozen=True, kw_only=True)
class FinalAccuracy(ClaimSettings):
    """The long runs over learning rates; `negligible` is a lead too small to matter."""

    activations: tuple[str, ...] = ("relu",)
    learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 1000
    evaluate_every: int = 50
    negligible: float = 0.002


def run(settings: FinalAccuracy, run_cases: RunCases = in_turn) -> Evidence:
    """Return by how much batch norm leads along training and at its end."""
    cases = list(product(settings.activations, SIDES, range(settings.seeds)))
    return judge(settings, run_cases(training, settings, cases))


def training(settings: FinalAccuracy, case: tuple[str, Side, int]) -> dict[str, Any]:
    """Return the runs of one side over the learning rates."""
    activation, side, seed = case
    runs = runs_over(
        settings,
        side,
        seed=seed,
        rates=settings.learning_rates,
        steps=settings.steps,
        activations=[activation],
    )
    return {"activation": activation, "side": side, "seed": seed, "runs": runs}


@dataclass(frozen=True)
class Lead:
    """Paired runs of (plain, batch norm), and what one activation shows of them."""

    pairs: tuple[tuple[Run, Run], ...]
    rates: tuple[tuple[float, float], ...]
    end: PairedDifference  # of the test accuracy

    @property
    def along(self) -> list[list[float]]:
        """The lead of batch norm at each evaluation, pair by pair; a diverged run ends it."""
        return [
            [b - p for p, b in zip(plain["accuracies"], batch_norm["accuracies"], strict=False)]
            for plain, batch_norm in self.pairs
        ]

    @property
    def largest(self) -> float:
        """The largest median lead along training."""
        length = min(map(len, self.along))
        return max(median(lead[i] for lead in self.along) for i in range(length))


def judge(settings: FinalAccuracy, trained: Records) -> Evidence:
    """Return the verdict: the lead in test accuracy at the end, by activation."""
    leads = {name: _lead(trained, name) for name in settings.activations}
    return Evidence(
        headline=_headline(leads),
        parts=tuple(_part(settings, name, lead) for name, lead in leads.items()),
        beside=tuple(each for name, lead in leads.items() for each in _beside(name, lead)),
        notes=edge_notes(
            {
                f"{side} with {name}": _best(trained, name, side)
                for name, side in product(settings.activations, SIDES)
            },
            settings.learning_rates,
        ),
        figures=(_along(settings, leads), _ends(leads)),
        details=tuple(
            {
                "activation": name,
                "pair": place,
                "learning rates": list(lead.rates[place]),
                "test accuracies": [run["test"] for run in pair],
            }
            for name, lead in leads.items()
            for place, pair in enumerate(lead.pairs)
        ),
    )


def _lead(trained: Records, activation: str) -> Lead:
    sides = [_best(trained, activation, side) for side in SIDES]
    both = list(zip(*(side.values() for side in sides), strict=True))
    pairs = tuple((plain[1], batch_norm[1]) for plain, batch_norm in both)
    return Lead(
        pairs=pairs,
        rates=tuple((plain[0], batch_norm[0]) for plain, batch_norm in both),
        end=paired_difference((plain["test"], batch_norm["test"]) for plain, batch_norm in pairs),
    )


def _best(trained: Records, activation: str, side: Side) -> dict[int, tuple[float, Run]]:
    return own_best(select(trained, activation=activation, side=side), error)


def _headline(leads: Mapping[str, Lead]) -> str:
    ends = " and ".join(_end(name, lead.end.difference) for name, lead in leads.items())
    return f"Trained to its end, the network with batch norm is {ends}."


def _end(activation: str, lead: float | None) -> str:
    if lead is None:
        return f"of unknown accuracy with {activation}"
    word = "more" if lead >= 0 else "less"
    return f"{abs(100 * lead):.1f} points {word} accurate with {activation}"


def _part(settings: FinalAccuracy, activation: str, lead: Lead) -> Part:
    shown = beyond(lead.end, bar=0, negligible=settings.negligible)
    return Part(f"a better end with {activation}", points(lead.end), shown)


def _beside(activation: str, lead: Lead) -> Iterator[Beside]:
    plain, batch_norm = (
        100 * median(_late_gain(pair[side]) for pair in lead.pairs) for side in range(2)
    )
    largest = f"up to {100 * lead.largest:.1f} points"
    yield Beside(f"lead along training with {activation}", largest)
    late = f"{plain:+.1f} points plain, {batch_norm:+.1f} with batch norm"
    yield Beside(f"what the last quarter added with {activation}", late)


def _late_gain(run: Run) -> float:
    """Return what the last quarter of training added to the accuracy."""
    return run["accuracies"][-1] - run["accuracies"][len(run["accuracies"]) * 3 // 4 - 1]


def _along(settings: FinalAccuracy, leads: Mapping[str, Lead]) -> Lines:
    x = range(settings.evaluate_every, settings.steps + 1, settings.evaluate_every)
    found = ", ".join(
        f"{100 * lead.largest:.1f} points at most and "
        f"{100 * median(run[-1] for run in lead.along):.1f} at the end with {name}"
        for name, lead in leads.items()
    )
    return Lines(
        title=f"Batch norm leads by {found}",
        x=Axis("training steps", logarithmic=True),
        y=Axis("lead in held-out accuracy (points), median and range"),
        lines=tuple(band(name, x, lead.along, scale=100) for name, lead in leads.items()),
        rule=Rule(0, "equal"),
    )


def _ends(leads: Mapping[str, Lead]) -> Dots:
    ends = {
        (name, side): [100 * pair[place]["test"] for pair in lead.pairs]
        for name, lead in leads.items()
        for place, side in enumerate(SIDES)
    }
    return Dots(
        title="Test accuracy at the end, each side at its own best learning rate",
        x=Axis("test accuracy (%), median and range"),
        dots=tuple(
            Dot(name, side, median(values), min(values), max(values), side)
            for (name, side), values in ends.items()
        ),
    )


CLAIM = Claim(
    name="final-accuracy",
    statement="A network with batch norm is better in the end, not only trained faster.",
    sources=(
        Source("Udacity's lesson", "it may give better results overall, besides training faster"),
        Source("Ioffe and Szegedy 2015, section 4.2", "74.8% in the end, against 72.2% without"),
        Source("Bjorck et al. 2018, section 3", "at equal learning rates it ends no better"),
    ),
    measurement=(
        "Both sides of the network are trained for long at each learning rate of a sweep. Each "
        "side's best rate is the one with the highest final held-out accuracy over the other "
        "seeds; at these rates the test accuracies at the end are compared, seed by seed. The lead "
        "along training, and what the last quarter still adds, show whether training had converged."
    ),
    criteria=(
        "For each activation, the 95% interval over seeds of the lead of batch norm in final test "
        "accuracy: shown above 0, refuted below 0.2 points. The claim holds if all parts do."
    ),
    sizes={
        "toy": FinalAccuracy(
            seeds=3, learning_rates=(0.1, 0.3), hidden=(16,), steps=80, evaluate_every=20
        ),
        "digits": FinalAccuracy(),
        "mnist": FinalAccuracy(
            data="mnist",
            activations=("relu", "tanh"),
            learning_rates=(0.03, 0.1, 0.3, 1.0),
            seeds=4,
            steps=6000,
            evaluate_every=300,
        ),
    },
    run=run,
)
