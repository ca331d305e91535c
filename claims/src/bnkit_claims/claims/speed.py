"""Claim 1: with batch norm a network trains faster, by a source in a tenth of the time."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from bnkit.experiments.loaders import first_of
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.training import Training, train
from bnkit_claims.core.best_rates import (
    Run,
    StepRatio,
    edge_notes,
    own_best,
    runs_over,
    slowness,
    step_ratio,
    steps_to,
)
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Lines, Rule, accuracy_chart, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part
from bnkit_claims.core.pairs import Records, select
from bnkit_claims.core.trainings import experiment_for


@dataclass(frozen=True, kw_only=True)
class Speed(ClaimSettings):
    """The runs to the target, and the bursts of steps that are timed."""

    activations: tuple[str, ...] = ("sigmoid", "relu")
    learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    hidden: tuple[int, ...] = (100, 100, 100)  # Ioffe and Szegedy 2015, section 4.1
    batch_size: int = 60
    steps: int = 600
    evaluate_every: int = 5
    target: float = 0.9
    bursts: int = 7
    burst: int = 20


def run(settings: Speed, run_cases: RunCases = in_turn) -> Evidence:
    """Return how many times as many steps and seconds the plain network takes to the target."""
    seeds = range(settings.seeds)
    trained = run_cases(training, settings, list(product(settings.activations, SIDES, seeds)))
    timed = run_cases(seconds_per_step, settings, list(product(settings.activations, seeds)))
    return judge(settings, trained, timed)


def training(settings: Speed, case: tuple[str, Side, int]) -> dict[str, Any]:
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


def seconds_per_step(settings: Speed, case: tuple[str, int]) -> dict[str, Any]:
    """Return the processor's seconds for a step of both sides, in the quickest of several bursts.

    The sides take turns. With one thread, processor time is what a clock would show on an idle
    machine. At its end a burst is evaluated on one mini-batch.
    """
    activation, seed = case
    drawn = experiment_for(settings)
    sides = {side: (drawn.network(side, activation, seed), drawn.loaders(seed)) for side in SIDES}
    plan = Training(0.01, steps=settings.burst, evaluate_every=settings.burst)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(settings.bursts):
        for side, (model, loaders) in sides.items():
            began = time.process_time()
            train(model, loaders.train, [first_of(loaders.train)], plan)
            seconds[side].append((time.process_time() - began) / settings.burst)
    least = {side: min(times) for side, times in seconds.items()}
    return {"activation": activation, "seed": seed, "seconds": least}


@dataclass(frozen=True)
class Gain:
    """What one activation shows: ratios of steps, plain ÷ batch norm, and of seconds."""

    same_rate: StepRatio  # at the plain network's best learning rate
    own_rates: StepRatio
    seconds: StepRatio
    slowdown: float


def judge(settings: Speed, trained: Records, timed: Records) -> Evidence:
    """Return the verdict: for each activation fewer steps, a tenth of them, and fewer seconds."""
    gains = {name: _gain(settings, name, trained, timed) for name in settings.activations}
    return Evidence(
        headline=_headline(settings, gains),
        parts=tuple(part for name, gain in gains.items() for part in _parts(name, gain)),
        beside=tuple(each for name, gain in gains.items() for each in _beside(name, gain)),
        notes=edge_notes(
            {
                f"{side} with {name}": _best(settings, trained, name, side)
                for name, side in product(settings.activations, SIDES)
            },
            settings.learning_rates,
        ),
        figures=(_curves(settings, trained), _ratios(gains)),
        details=tuple(_details(settings, trained)),
    )


def _gain(settings: Speed, activation: str, trained: Records, timed: Records) -> Gain:
    best = {side: _best(settings, trained, activation, side) for side in SIDES}
    seeds = list(best["plain"])
    plain = [best["plain"][seed][1] for seed in seeds]
    batch_norm = [best["batch norm"][seed][1] for seed in seeds]
    same = [
        result["runs"][str(best["plain"][seed][0])]
        for seed in seeds
        for result in select(trained, activation=activation, side="batch norm", seed=seed)
    ]
    seconds = {r["seed"]: r["seconds"] for r in timed if r["activation"] == activation}
    prices = [(seconds[seed]["plain"], seconds[seed]["batch norm"]) for seed in seeds]
    pairs = list(zip(plain, batch_norm, strict=True))
    return Gain(
        same_rate=step_ratio(list(zip(plain, same, strict=True)), settings.target),
        own_rates=step_ratio(pairs, settings.target),
        seconds=step_ratio(pairs, settings.target, prices),
        slowdown=sorted(b / p for p, b in prices)[len(prices) // 2],
    )


def _best(
    settings: Speed, trained: Records, activation: str, side: Side
) -> dict[int, tuple[float, Run]]:
    runs = select(trained, activation=activation, side=side)
    return own_best(runs, slowness(settings.target))


def _headline(settings: Speed, gains: Mapping[str, Gain]) -> str:
    found = " and ".join(f"{gain.own_rates.roughly} with {name}" for name, gain in gains.items())
    times = found.replace(" times", " times the steps", 1)
    return f"To {settings.target:.0%} the plain network takes {times}."


def _parts(activation: str, gain: Gain) -> Iterator[Part]:
    steps, seconds = gain.own_rates.without("as many"), gain.seconds.without("as long")
    fewer = gain.own_rates.beyond(1, negligible=1.1)
    yield Part(f"fewer steps with {activation}", steps, fewer)
    tenth = gain.own_rates.beyond(10, negligible=10)
    yield Part(f"ten times fewer steps with {activation}", steps, tenth)
    less = gain.seconds.beyond(1, negligible=1.1)
    yield Part(f"less time with {activation}", seconds, less)


def _beside(activation: str, gain: Gain) -> Iterator[Beside]:
    same_rate = gain.same_rate.without("as many")
    yield Beside(f"steps at plain's best rate with {activation}", same_rate)
    slowdown = f"{gain.slowdown:.2f} times as long with batch norm"
    yield Beside(f"time for one step with {activation}", slowdown)


def _curves(settings: Speed, trained: Records) -> Lines:
    x = range(settings.evaluate_every, settings.steps + 1, settings.evaluate_every)
    lines = [
        band(
            side,
            x,
            [run["accuracies"] for _, run in _best(settings, trained, name, side).values()],
            side=side,
            panel=name,
            scale=100,
        )
        for name in settings.activations
        for side in SIDES
    ]
    return accuracy_chart(
        "Accuracy along training, each side at its own best learning rate",
        lines,
        rule=(settings.target, "target"),
    )


def _ratios(gains: Mapping[str, Gain]) -> Dots:
    dots = [
        Dot(activation, what, found.ratio.ratio, found.ratio.low, found.ratio.high)
        for activation, gain in gains.items()
        for what, found in {
            "steps, same rate": gain.same_rate,
            "steps, own rates": gain.own_rates,
            "seconds, own rates": gain.seconds,
        }.items()
    ]
    return Dots(
        title=f"Steps to the target, plain to batch norm: {_shortest(gains)}",
        x=Axis("plain ÷ batch norm, with 95% interval; a bound where plain never arrives", True),
        dots=tuple(dots),
        rule=Rule(1, "equal"),
    )


def _shortest(gains: Mapping[str, Gain]) -> str:
    return ", ".join(f"{_times(gain.own_rates)} with {name}" for name, gain in gains.items())


def _times(found: StepRatio) -> str:
    if found.ratio.ratio is None:
        return "never"
    bound = "at least " if found.at_least else "at most " if found.at_most else ""
    return f"{bound}{found.ratio.ratio:.1f} times"


def _details(settings: Speed, trained: Records) -> Iterator[dict[str, Any]]:
    for name, side in product(settings.activations, SIDES):
        for seed, (rate, best) in _best(settings, trained, name, side).items():
            yield {
                "activation": name,
                "side": side,
                "seed": seed,
                "learning rate": rate,
                "steps to the target": steps_to(best, settings.target),
            }


CLAIM = Claim(
    name="faster",
    statement="A network with batch norm trains faster, in a tenth of the steps or fewer.",
    sources=(
        Source("Ioffe and Szegedy 2015, section 4.2", "the same accuracy in 14 times fewer steps"),
        Source("fast.ai, lesson 3", "training becomes ten times as fast, or more"),
        Source("Udacity's lesson", "it trains faster, though each step takes longer"),
    ),
    measurement=(
        "Both sides of the network are trained at each learning rate of a sweep. The steps to the "
        "target accuracy are compared, seed by seed: each side at its own best rate, which is "
        "chosen on the other seeds (as the paper compares 31 with 2.1 million steps), and both at "
        "the plain network's best rate (as it compares 31 with 13.3 million). A run that never "
        "gets there counts with all its steps, so that the ratio is a bound. Training steps of "
        "both sides are timed in turns, in one thread, with the processor's clock, so that other "
        "work on the machine does not count; steps times their seconds is the time."
    ),
    criteria=(
        "For each activation, from the 95% interval over seeds of plain ÷ batch norm at own "
        "rates: fewer steps are shown above 1 and refuted below 1.1; ten times fewer are shown "
        "above 10 and refuted below 10; less time as fewer steps. A bound shows or refutes only "
        "what lies on its far side. The claim holds if all parts do."
    ),
    sizes={
        "toy": Speed(
            seeds=3,
            activations=("relu",),
            learning_rates=(0.1, 0.3),
            hidden=(16,),
            steps=80,
            target=0.5,
            bursts=2,
            burst=5,
        ),
        "digits": Speed(),
        "mnist": Speed(
            data="mnist",
            learning_rates=(0.1, 0.3, 1.0, 3.0, 10.0),
            steps=5000,
            evaluate_every=25,
            target=0.95,
        ),
    },
    run=run,
)
