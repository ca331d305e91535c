"""Claim 4: batch norm makes training less dependent on the initial weights, within bounds."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedDifference, SuccessRate, paired_difference
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Line, Lines
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, select
from bnkit_claims.core.trainings import trial

Setting = tuple[str, float]  # activation, learning rate
Rates = Mapping[tuple[Setting, float], SuccessRate]  # by setting and standard deviation


@dataclass(frozen=True, kw_only=True)
class Initialisation(ClaimSettings):
    """The standard deviations of the initial weights; a run trains that ends at `target`."""

    deviations: tuple[float, ...] = (0.001, 0.01, 0.05, 0.2, 1.0, 5.0)
    activations: tuple[str, ...] = ("sigmoid", "relu")
    learning_rates: tuple[float, ...] = (0.3, 1.0)
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 150
    target: float = 0.8
    enough: float = 0.9  # the success rate that fixes an initialisation

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Each activation at each learning rate."""
        return tuple(product(self.activations, self.learning_rates))


def run(settings: Initialisation, run_cases: RunCases = in_turn) -> Evidence:
    """Return how often runs train from initial weights of each standard deviation."""
    seeds = range(settings.seeds)
    cases = [(*setting, *c) for setting, *c in product(settings.settings, SIDES, seeds)]
    return judge(settings, run_cases(training, settings, cases))


def training(settings: Initialisation, case: tuple[str, float, Side, int]) -> dict[str, Any]:
    """Return the final held-out accuracy from each deviation, None for runs that diverged."""
    activation, rate, side, seed = case
    accuracies = {}
    for deviation in settings.deviations:
        found = trial(
            settings,
            side,
            seed=seed,
            learning_rate=rate,
            activations=[activation],
            init=f"normal:{deviation}",
            evaluate_every=settings.steps,
        )
        accuracies[str(deviation)] = found.metric if found.outcome == "finished" else None
    return {
        "activation": activation,
        "learning_rate": rate,
        "side": side,
        "seed": seed,
        "accuracies": accuracies,
    }


def judge(settings: Initialisation, trained: Records) -> Evidence:
    """Return the verdict: from more deviations in each setting, and still not from all of them."""
    gains = {setting: _gain(settings, trained, setting) for setting in settings.settings}
    with_it = {
        (setting, deviation): _rate(settings, trained, setting, "batch norm", deviation)
        for setting, deviation in product(settings.settings, settings.deviations)
    }
    more = (_more(settings, *named) for named in gains.items())
    return Evidence(
        headline=_headline(settings, trained, with_it),
        parts=(*more, _not_everything(settings, with_it)),
        figures=(_chart(settings, trained),),
        details=tuple(_details(settings, trained)),
    )


def _of(trained: Records, setting: Setting, side: Side) -> list[Mapping[str, Any]]:
    activation, rate = setting
    return select(trained, activation=activation, learning_rate=rate, side=side)


def _trains(settings: Initialisation, accuracy: float | None) -> bool:
    return accuracy is not None and accuracy >= settings.target


def _rate(
    settings: Initialisation, trained: Records, setting: Setting, side: Side, deviation: float
) -> SuccessRate:
    """Return how many seeds train from weights of this standard deviation."""
    runs = [r["accuracies"][str(deviation)] for r in _of(trained, setting, side)]
    return SuccessRate(sum(_trains(settings, accuracy) for accuracy in runs), len(runs))


def _gain(settings: Initialisation, trained: Records, setting: Setting) -> PairedDifference:
    """Return from how many more deviations batch norm trains, over the seeds."""
    counts = [
        {
            r["seed"]: sum(_trains(settings, accuracy) for accuracy in r["accuracies"].values())
            for r in _of(trained, setting, side)
        }
        for side in SIDES
    ]
    return paired_difference((count, counts[1][seed]) for seed, count in counts[0].items())


def _more(settings: Initialisation, setting: Setting, gain: PairedDifference) -> Part:
    interval = "" if gain.low is None else f" ({gain.low:+.1f} to {gain.high:+.1f})"
    return Part(
        f"more initial weights with {_name(setting)}",
        f"{gain.difference or 0:+.1f}{interval} of {len(settings.deviations)} standard deviations",
        beyond(gain, bar=0, negligible=0.5),
    )


def _not_everything(settings: Initialisation, with_it: Rates) -> Part:
    """Return whether some initialisation fails too often for sure; False if hardly any run does."""
    every = _together(with_it.values())
    fails = any(rate.interval[1] < settings.enough for rate in with_it.values())
    fixed = every.interval[0] > settings.enough
    return Part(
        "not fixing everything",
        f"{every} runs train with batch norm{_worst(with_it, ', ')}",
        True if fails else False if fixed else None,
    )


def _together(rates: Iterable[SuccessRate]) -> SuccessRate:
    found = list(rates)
    return SuccessRate(sum(r.successes for r in found), sum(r.runs for r in found))


def _worst(with_it: Rates, link: str) -> str:
    (setting, deviation), rate = min(with_it.items(), key=lambda item: item[1].successes)
    if rate.successes == rate.runs:
        return ""
    return f"{link}{rate} from a deviation of {deviation:g} ({_name(setting)})"


def _headline(settings: Initialisation, trained: Records, with_it: Rates) -> str:
    plain, batch_norm = (
        _together(
            _rate(settings, trained, setting, side, deviation) for setting, deviation in with_it
        )
        for side in SIDES
    )
    return (
        f"From initial weights of {len(settings.deviations)} standard deviations "
        f"{plain.successes} of {plain.runs} runs train without batch norm and "
        f"{batch_norm.successes} with it{_worst(with_it, ', but ')}."
    )


def _name(setting: Setting) -> str:
    activation, rate = setting
    return f"{activation} at rate {rate:g}"


def _chart(settings: Initialisation, trained: Records) -> Lines:
    rates = {
        (setting, side): [
            _rate(settings, trained, setting, side, deviation) for deviation in settings.deviations
        ]
        for setting, side in product(settings.settings, SIDES)
    }
    train = {
        side: sum(r.successes for (_, s), found in rates.items() for r in found if s == side)
        for side in SIDES
    }
    runs = sum(r.runs for (_, s), found in rates.items() for r in found if s == "plain")
    return Lines(
        title=(
            f"With batch norm {train['batch norm']} of {runs} runs train, without {train['plain']}"
        ),
        x=Axis("standard deviation of the initial weights", logarithmic=True),
        y=Axis(f"runs that end at {settings.target:.0%} or above (%), with 95% interval"),
        lines=tuple(
            Line(
                name=side,
                side=side,
                x=settings.deviations,
                y=tuple(100 * rate.successes / rate.runs for rate in found),
                low=tuple(100 * rate.interval[0] for rate in found),
                high=tuple(100 * rate.interval[1] for rate in found),
                panel=f"{setting[0]}, learning rate {setting[1]:g}",
            )
            for (setting, side), found in rates.items()
        ),
    )


def _details(settings: Initialisation, trained: Records) -> Iterator[dict[str, Any]]:
    for setting, side, deviation in product(settings.settings, SIDES, settings.deviations):
        rate = _rate(settings, trained, setting, side, deviation)
        low, high = rate.interval
        yield {
            "activation": setting[0],
            "learning rate": setting[1],
            "side": side,
            "standard deviation": deviation,
            "trained": rate.successes,
            "runs": rate.runs,
            "low": low,
            "high": high,
        }


CLAIM = Claim(
    name="initialisation",
    statement=(
        "Batch norm lets a network train from more initial weights, but does not fix all of them."
    ),
    sources=(
        Source("Ioffe and Szegedy 2015, section 1", "one can be less careful about initialisation"),
        Source("Udacity's lesson", "bad weights train with it, but it does not fix everything"),
    ),
    measurement=(
        "Networks whose initial weights are normal with a standard deviation from 0.001 to 5 are "
        "trained for a fixed number of steps, with both activations and at both learning rates. A "
        "run trains if it ends at the target accuracy or above. The rates are over seeds: the "
        "published verdict of Udacity's lesson on a deviation of 5 rests on single runs, two of "
        "which failed where the same setting had succeeded before."
    ),
    criteria=(
        "More initial weights, for each activation and learning rate: the 95% interval over seeds "
        "of how many more deviations train with batch norm lies above 0; one that ends below a "
        "half speaks against it. Not fixing everything: with batch norm some deviation has a "
        "success rate whose interval (Wilson) lies below 90%; refuted if the rate of all runs "
        "together lies above. The claim holds if all parts do."
    ),
    sizes={
        "toy": Initialisation(
            seeds=3,
            deviations=(0.001, 0.2),
            activations=("relu",),
            learning_rates=(1.0,),
            hidden=(16,),
            steps=40,
            target=0.5,
        ),
        "digits": Initialisation(),
        "mnist": Initialisation(data="mnist", steps=1000),
    },
    run=run,
)
