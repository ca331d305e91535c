"""Claim 11: at run time batch norm needs the statistics of its training data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, product
from operator import itemgetter
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.experiments.experiment import Experiment
from bnkit.experiments.loaders import Loaders, first_of
from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit.experiments.training import Training, train
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments
from bnkit.observation import evaluating, seeing_inputs
from bnkit.recalibration import recalibrate
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Lines, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, points, select
from bnkit_claims.core.trainings import experiment_for

Trainee = tuple[str, int, float]  # network, training steps, learning rate
ByName = Mapping[str, PairedDifference]
ByMomentum = Mapping[float, PairedDifference]


@dataclass(frozen=True, kw_only=True)
class RunTime(ClaimSettings):
    """The networks that are asked in mini-batches, and the momenta of the moving averages.

    Single examples and `mini_batches` of these sizes are cut from the first `examples` of the test
    set. The momenta are followed on the first of the networks, after each of `looks` training
    steps: they double, so that an average over few steps is met while it still lags as well as one
    over many. `population` counts the mini-batches of training data whose statistics are pooled.
    """

    networks: tuple[Trainee, ...] = (("mlp", 600, 0.1), ("resnet", 100, 0.1))
    hidden: tuple[int, ...] = (100, 100, 100)
    init: str = "default"
    eps: float = 1e-5
    seeds: int = 4
    momenta: tuple[float, ...] = (0.1, 0.01)  # torch's, and that of TensorFlow and Keras
    batch_size: int = 60
    looks: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320, 600)
    population: int = 10
    mini_batches: tuple[int, ...] = (4, 16, 64, 200)
    examples: int = 200

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the mini-batches, from a single example on."""
        return (1, *self.mini_batches)


def run(settings: RunTime, run_cases: RunCases = in_turn) -> Evidence:
    """Return what batch norm answers at run time, by the statistics that it normalises by."""
    seeds, names = range(settings.seeds), [name for name, _, _ in settings.networks]
    asked = run_cases(answered, settings, list(product(names, seeds)))
    followed = run_cases(along_training, settings, list(product(settings.momenta, seeds)))
    return judge(settings, asked, followed)


def answered(settings: RunTime, case: tuple[str, int]) -> dict[str, Any]:
    """Return the accuracy of one trained network, by population and by own statistics.

    The own statistics are those of mini-batches of growing size. `one_answer` is the share of the
    most frequent answer where the examples come one at a time.
    """
    network, seed = case
    model, drawn = trained(settings, network, seed)
    inputs, targets = (part[: settings.examples] for part in whole_test(drawn.loaders(seed)))
    by_population = answers(with_population(settings, model, drawn, seed), inputs)
    own = {size: own_answers(model, inputs, size) for size in settings.sizes}
    singly = own[1]
    return {
        "network": network,
        "seed": seed,
        "population": share(by_population == targets),
        "own": [share(found == targets) for found in own.values()],
        "single": share(singly == targets),
        "one_answer": share(singly == singly.mode().values),
    }


def along_training(settings: RunTime, case: tuple[float, int]) -> dict[str, Any]:
    """Return the test accuracy along training, by moving averages and by population statistics."""
    momentum, seed = case
    network, _, rate = settings.networks[0]
    drawn = drawn_for(settings, network, momentum)
    model, loaders = drawn.network("batch norm", "relu", seed), drawn.loaders(seed)
    inputs, targets = whole_test(loaders)
    first = first_of(loaders.test)
    moving, population = [], []
    for before, look in pairwise((0, *settings.looks)):
        steps = look - before
        train(model, loaders.train, [first], Training(rate, steps=steps, evaluate_every=steps))
        settled = with_population(settings, model, drawn, seed)
        moving.append(share(answers(model, inputs) == targets))
        population.append(share(answers(settled, inputs) == targets))
    return {"momentum": momentum, "seed": seed, "moving": moving, "population": population}


def drawn_for(settings: RunTime, network: str, momentum: float) -> Experiment:
    """Return what the networks and mini-batches of these settings come from."""
    options = {"activations": ["relu"], "eps": settings.eps, "momentum": momentum}
    return experiment_for(settings, network, **options)


def trained(settings: RunTime, network: str, seed: int) -> tuple[nn.Module, Experiment]:
    """Return a network with batch norm after its training, with the last of the momenta."""
    steps, rate = next((s, rate) for name, s, rate in settings.networks if name == network)
    drawn = drawn_for(settings, network, settings.momenta[-1])
    model, loaders = drawn.network("batch norm", "relu", seed), drawn.loaders(seed)
    train(model, loaders.train, loaders.held_out, Training(rate, steps=steps, evaluate_every=steps))
    return model, drawn


def with_population(settings: RunTime, model: nn.Module, drawn: Experiment, seed: int) -> nn.Module:
    """Return a copy that holds the pooled statistics of mini-batches of the training data."""
    batches = islice(drawn.loaders(seed).train, settings.population)
    return recalibrate(model, [inputs for inputs, _ in batches], progress=False)


def whole_test(loaders: Loaders) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of the whole test set."""
    inputs, targets = zip(*loaders.test, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@torch.no_grad()
def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the classes that the model names in eval mode, so by the statistics that it holds."""
    with evaluating(model):
        return torch.cat([model(part).argmax(1) for part in torch.split(inputs, 1000)])


@torch.no_grad()
def own_answers(model: nn.Module, inputs: Tensor, size: int) -> Tensor:
    """Return the classes named where mini-batches of `size` are normalised by their own statistics.

    Torch refuses a mini-batch of one value per feature; here it becomes (x − x) / sqrt(eps) = 0.

    >>> own_answers(nn.Sequential(nn.BatchNorm1d(2)), torch.tensor([[9.0, 1.0], [1.0, 9.0]]), 1)
    tensor([0, 0])
    """
    asked = duplicate(model)
    layers = {path: m for path, m in asked.named_modules() if isinstance(m, AnyBatchNorm)}
    with evaluating(asked), seeing_inputs(asked, layers, _take_own_statistics):
        return torch.cat([asked(part).argmax(1) for part in torch.split(inputs, size)])


def _take_own_statistics(_path: str, layer: nn.Module, values: Tensor) -> None:
    moments = Moments.of(values)
    layer.get_buffer("running_mean").copy_(moments.mean)
    layer.get_buffer("running_var").copy_(moments.variance)


def share(hits: Tensor) -> float:
    """Return the share of True.

    >>> share(torch.tensor([True, False, False, True]))
    0.5
    """
    return int(hits.sum()) / len(hits)


def judge(settings: RunTime, asked: Records, followed: Records) -> Evidence:
    """Return the verdict: single examples fail, moving averages lag early and serve at the end."""
    lost = {name: _lost(select(asked, network=name)) for name, _, _ in settings.networks}
    last = {m: _behind(select(followed, momentum=m), itemgetter(-1)) for m in settings.momenta}
    most = {m: _behind(select(followed, momentum=m), max) for m in settings.momenta}
    return Evidence(
        headline=_headline(lost, most, last),
        parts=tuple(_parts(lost, most, last)),
        beside=tuple(_beside(settings, asked, followed)),
        figures=(_sizes_chart(settings, asked), _training_chart(settings, followed)),
        details=tuple(
            {
                "network": row["network"],
                "seed": row["seed"],
                "population statistics": row["population"],
                "one at a time": row["single"],
                "share of the most frequent answer": row["one_answer"],
            }
            for row in asked
        ),
    )


def _headline(lost: ByName, most: ByMomentum, last: ByMomentum) -> str:
    single = " and ".join(f"{round(100 * (d.difference or 0))} ({n})" for n, d in lost.items())
    worst, end = (
        max(0, *(100 * (d.difference or 0) for d in found.values())) for found in (most, last)
    )
    return (
        f"With their own statistics single examples lose {single} points of accuracy; moving "
        f"averages lose up to {round(worst)} along training and {end:.1f} at its end."
    )


def _parts(lost: ByName, most: ByMomentum, last: ByMomentum) -> Iterator[Part]:
    for name, d in lost.items():
        yield Part(f"single examples fail with {name}", f"{points(d)} lost", _over(d, 0.5))
    for momentum, d in most.items():
        what = f"moving averages mislead early, momentum {momentum:g}"
        yield Part(what, f"{points(d)} behind", _over(d, 0.05))
    for momentum, d in last.items():
        what = f"moving averages good enough at the end, momentum {momentum:g}"
        yield Part(what, f"{points(d)} behind", _within(d))


def _beside(settings: RunTime, asked: Records, followed: Records) -> Iterator[Beside]:
    for name, _, _ in settings.networks:
        own, population, same = (
            _percent(select(asked, network=name), what)
            for what in ("single", "population", "one_answer")
        )
        right = f"{own} with their own statistics, {population} with the population's"
        yield Beside(f"single examples that are right with {name}", right)
        yield Beside(f"single examples given the same answer, {name}", same)
    for momentum in settings.momenta:
        arrival = f"within a point {_arrival(settings, select(followed, momentum=momentum))}"
        yield Beside(f"moving averages arrive, momentum {momentum:g}", arrival)


def _lost(asked: Records) -> PairedDifference:
    """Return by how much the accuracy falls where examples come one at a time."""
    return paired_difference((r["single"], r["population"]) for r in asked)


def _behind(followed: Records, chosen: Callable[[list[float]], float]) -> PairedDifference:
    """Return by how much moving averages lie behind: at the end, or where it is most."""
    return paired_difference((0.0, chosen(_gaps(row))) for row in followed)


def _gaps(row: Mapping[str, Any]) -> list[float]:
    return [p - m for m, p in zip(row["moving"], row["population"], strict=True)]


def _over(found: PairedDifference, bar: float) -> bool | None:
    return beyond(found, bar=bar, negligible=bar)


def _within(found: PairedDifference) -> bool | None:
    behind = _over(found, 0.005)
    return None if behind is None else not behind


def _percent(rows: Records, what: str) -> str:
    return f"{median(100 * row[what] for row in rows):.0f}%"


def _arrival(settings: RunTime, followed: Records) -> str:
    """Return in words the median step from which the moving averages stay within a point."""
    arrived = sorted(_arrived(_gaps(row)) for row in followed)
    late = arrived[len(arrived) // 2]
    return f"by step {settings.looks[late]}" if late < len(settings.looks) else "at no time"


def _arrived(gaps: Sequence[float]) -> int:
    """Return the number of the look from which on no gap exceeds a point."""
    return max((place + 1 for place, gap in enumerate(gaps) if gap > 0.01), default=0)


def _sizes_chart(settings: RunTime, asked: Records) -> Lines:
    names = [name for name, _, _ in settings.networks]
    singles = ", ".join(f"{n} {_percent(select(asked, network=n), 'single')}" for n in names)
    sizes = settings.sizes
    lines = [
        band(label, sizes, runs, panel=name, scale=100)
        for name in names
        for rows in [select(asked, network=name)]
        for label, runs in {
            "its own": [row["own"] for row in rows],
            "population": [[row["population"]] * len(sizes) for row in rows],
        }.items()
    ]
    return Lines(
        title=f"Accuracy of single examples by their own statistics: {singles}",
        x=Axis("examples in a mini-batch at run time", logarithmic=True),
        y=Axis("test accuracy (%), median and range, by the statistics used"),
        lines=tuple(lines),
    )


def _training_chart(settings: RunTime, followed: Records) -> Lines:
    rows = {m: select(followed, momentum=m) for m in settings.momenta}
    arrivals = ", ".join(f"{_arrival(settings, found)} at {m:g}" for m, found in rows.items())
    lines = [
        band(label, settings.looks, [r[what] for r in found], panel=f"momentum {m:g}", scale=100)
        for m, found in rows.items()
        for label, what in {"moving average": "moving", "population": "population"}.items()
    ]
    return Lines(
        title=f"Moving averages come within a point of population statistics: {arrivals}",
        x=Axis("training steps", logarithmic=True),
        y=Axis("test accuracy (%), median and range, by the statistics used"),
        lines=tuple(lines),
    )


CLAIM = Claim(
    name="run-time",
    statement=(
        "At run time batch norm needs the statistics of its training data: a single example fails "
        "with its own, and moving averages, which mislead early, are good enough at the end."
    ),
    sources=(
        Source(
            "Udacity's lesson",
            "with its own statistics a network answers 200 single images with one class, 5% "
            "right; with moving averages 97%",
        ),
        Source(
            "Ioffe and Szegedy 2015, section 3.1",
            "population statistics for inference; moving averages to follow the training",
        ),
        Source(
            "Wu and Johnson 2021, section 3",
            "moving averages lag, worst early; once the weights have settled, both are alike",
        ),
    ),
    measurement=(
        "Trained networks answer test examples in mini-batches of 1 to 200, normalised with their "
        "own statistics, and by population statistics pooled over training data. A dense layer has "
        "one value per feature in a mini-batch of one, which becomes zero; a convolution still has "
        "all its pixels. Along a training, the accuracy with moving averages is measured beside "
        "that with population statistics of the same weights, for the momentum of torch (0.1) and "
        "that of TensorFlow and Keras (0.01)."
    ),
    criteria=(
        "Judged by 95% intervals over seeds of differences in accuracy. Single examples fail with "
        "a network if they lose more than 50 points against population statistics; moving averages "
        "mislead early if they lie more than 5 points behind at their worst, and are as good at "
        "the end if they lie less than 0.5 behind. The claim holds if all parts do."
    ),
    sizes={
        "toy": RunTime(
            seeds=3,
            networks=(("mlp", 60, 0.3),),
            hidden=(16,),
            looks=(5, 10, 20, 40, 60),
            population=5,
            mini_batches=(20, 100),
            examples=100,
        ),
        "digits": RunTime(),
        "mnist": RunTime(
            data="mnist",
            networks=(("mlp", 2000, 0.1), ("resnet", 300, 0.1)),
            looks=(5, 10, 20, 40, 80, 160, 320, 640, 1280, 2000),
            population=50,
            seeds=3,
        ),
    },
    run=run,
)
