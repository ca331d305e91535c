"""Claim 10: batch norm makes a network robust to covariate shift, such as another ink."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.data import Examples, load
from bnkit.experiments.initialisation import initialise_
from bnkit.experiments.loaders import Loaders, seed_everything
from bnkit.experiments.networks import network as network_named
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedDifference, paired_difference
from bnkit.recalibration import adapt
from bnkit.surgery import add
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Picture, Pictures, Rule, in_points, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, points, select
from bnkit_claims.core.trainings import accuracy_in_eval_mode, experiment_for, train_to_end

Ink = tuple[str, float, float, float]  # its name, and its red, green and blue from 0 to 1
Trainee = tuple[str, int, float]  # network, training steps, learning rate
ADAPTED = "adapted"
KINDS = (*SIDES, ADAPTED)
COMPARED = {  # how the second kind keeps more accuracy than the first, and as a row of the chart
    ("plain", "batch norm"): ("with batch norm", "batch norm as it is over plain"),
    ("plain", ADAPTED): ("with adapted batch norm", "batch norm adapted over plain"),
    ("batch norm", ADAPTED): ("adapted than unadapted", "adapted over as it is"),
}
Gains = Mapping[tuple[str, tuple[str, str]], PairedDifference]


@dataclass(frozen=True, kw_only=True)
class Robustness(ClaimSettings):
    """The ink to train on and the others, on white paper; the networks and how they are trained.

    A network with batch norm adapts to `adapting` training images in the new ink, unlabelled. One
    that does not reach the test accuracy `trained` in its own ink has nothing to lose in others.
    """

    ink: Ink = ("black", 0.0, 0.0, 0.0)
    others: tuple[Ink, ...] = (
        ("grey", 0.6, 0.6, 0.6),
        ("red", 0.9, 0.1, 0.1),
        ("green", 0.1, 0.7, 0.2),
        ("blue", 0.1, 0.2, 0.9),
        ("yellow", 1.0, 0.9, 0.1),
    )
    networks: tuple[Trainee, ...] = (("mlp", 300, 0.1), ("resnet", 120, 0.03))
    batch_size: int = 32
    adapting: int = 200
    trained: float = 0.8
    negligible: float = 0.005


def run(settings: Robustness, run_cases: RunCases = in_turn) -> Evidence:
    """Return the accuracy in each ink, with and without batch norm, and adapted to it."""
    cases = [
        (*trainee, *case)
        for trainee, *case in product(settings.networks, SIDES, range(settings.seeds))
    ]
    return judge(settings, run_cases(training, settings, cases))


def training(settings: Robustness, case: tuple[str, int, float, Side, int]) -> list[dict[str, Any]]:
    """Return the test accuracy of one network in every ink; with batch norm, adapted to it too."""
    network, steps, rate, side, seed = case
    data = load(settings.data, folder=settings.folder)
    model, loaders = _drawn(settings, network, side, seed)
    train_to_end(model, loaders, learning_rate=rate, steps=steps)
    found = []
    for ink in (settings.ink, *settings.others):
        fields = {"network": network, "ink": ink[0], "seed": seed}
        test = list(_split(written(data.test, ink)))
        found.append({**fields, "kind": side, "accuracy": accuracy_in_eval_mode(model, test)})
        if side == "batch norm":
            images = written(data.train, ink).inputs[: settings.adapting]
            better = adapt(model, [images], progress=False)
            found.append(
                {**fields, "kind": ADAPTED, "accuracy": accuracy_in_eval_mode(better, test)}
            )
    return found


def written(examples: Examples, ink: Ink) -> Examples:
    """Return the images as if written in this ink on white paper: (N, 3, H, W) of red, green, blue.

    >>> black = Examples(torch.tensor([[[[1.0, 0.5, 0.0]]]]), torch.tensor([7]))
    >>> written(black, ("red", 1.0, 0.0, 0.0)).inputs[0, :, 0].tolist()
    [[1.0, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]
    """
    absorbed = 1 - torch.tensor(ink[1:]).view(1, 3, 1, 1)
    return Examples(1 - examples.inputs * absorbed, examples.targets)


def _drawn(settings: Robustness, network: str, side: Side, seed: int) -> tuple[nn.Module, Loaders]:
    """Return the network for coloured images, and loaders of them in the ink to train on."""
    seed_everything(seed)
    drawn = experiment_for(settings)
    grey = drawn.loaders(seed)
    train = _in_ink(grey.train, settings.ink)
    channels = (3, *drawn.example(seed).shape[2:])
    seed_everything(seed)
    model = network_named(network).build(channels, drawn.classes, activation="relu")
    initialise_(model, "he", generator=torch.default_generator)
    if side == "batch norm":
        model = add(model, torch.zeros(2, *channels))
    held_out, test = (list(_in_ink(part, settings.ink)) for part in (grey.held_out, grey.test))
    return model, Loaders(train, held_out, test)


def _in_ink(batches: Any, ink: Ink) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, targets in batches:
        examples = written(Examples(inputs, targets), ink)
        yield examples.inputs, examples.targets


def _split(examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    parts = (torch.split(part, 1000) for part in (examples.inputs, examples.targets))
    yield from zip(*parts, strict=True)


def judge(settings: Robustness, trained: list[list[Mapping[str, Any]]]) -> Evidence:
    """Return the verdict: the accuracy in other inks, by network, as it is and adapted."""
    rows = [row for case in trained for row in case]
    gains = {
        (network, kinds): _gain(settings, rows, network, *kinds)
        for (network, *_), kinds in product(settings.networks, COMPARED)
    }
    return Evidence(
        headline=_headline(gains),
        parts=tuple(
            Part(
                f"{network} keeps more accuracy {COMPARED[kinds][0]}",
                points(gain),
                beyond(gain, bar=0, negligible=settings.negligible),
            )
            for (network, kinds), gain in gains.items()
        ),
        notes=tuple(_notes(settings, gains)),
        figures=(_by_ink(settings, rows), _gains(gains), _samples(settings)),
        details=tuple(rows),
    )


def _headline(gains: Gains) -> str:
    as_it_is, adapted = (
        " and ".join(
            f"{_signed(100 * gain.difference)} points ({name})"
            for (name, kinds), gain in gains.items()
            if kinds == ("plain", kind) and gain.difference is not None
        )
        for kind in ("batch norm", ADAPTED)
    )
    if not as_it_is:
        return "In no pair of runs do both sides learn their own ink, so others tell nothing."
    return (
        f"Batch norm changes the accuracy kept in other inks by {as_it_is}; adapted to the ink, "
        f"by {adapted}."
    )


def _signed(value: float) -> str:
    return f"{value:+z.{0 if abs(value) >= 10 else 1}f}"


def _notes(settings: Robustness, gains: Gains) -> Iterator[str]:
    for (name, kinds), gain in gains.items():
        if gain.high is not None and gain.high < 0:
            how = COMPARED[kinds][0]
            yield f"Contrary to its sources, {name} keeps less accuracy in other inks {how}."
        if gain.difference is None and kinds == ("plain", "batch norm"):
            yield (
                f"With {name} nothing is compared with plain: in no pair of runs do both sides "
                f"reach {settings.trained:.0%} in their own ink."
            )


def _gain(
    settings: Robustness, rows: Records, network: str, before: str, after: str
) -> PairedDifference:
    """Return by how much less `after` loses than `before`, over the seeds at which both train."""
    first, second = (_losses(settings, rows, network, kind) for kind in (before, after))
    both = sorted(first.keys() & second.keys())
    return paired_difference((second[seed], first[seed]) for seed in both)


def _losses(settings: Robustness, rows: Records, network: str, kind: str) -> dict[int, float]:
    """Return by seed the accuracy in the own ink less the mean in the others, where it trained.

    An adapted network lost what it has less than the one it was made of had in its own ink.
    """
    side = "batch norm" if kind == ADAPTED else kind
    base = select(rows, network=network, kind=side, ink=settings.ink[0])
    own = {row["seed"]: row["accuracy"] for row in base if row["accuracy"] >= settings.trained}
    return {
        seed: fmean(
            accuracy - row["accuracy"] for row in _in_others(settings, rows, network, kind, seed)
        )
        for seed, accuracy in own.items()
    }


def _in_others(settings: Robustness, rows: Records, network: str, kind: str, seed: int) -> Records:
    others = {name for name, *_ in settings.others}
    return [r for r in select(rows, network=network, kind=kind, seed=seed) if r["ink"] in others]


def _by_ink(settings: Robustness, rows: Records) -> Dots:
    sides: dict[str, Side | None] = {"plain": "plain", "batch norm": "batch norm", ADAPTED: None}
    dots: list[Dot] = [
        ranged(
            f"{network}, {ink[0]}",
            kind,
            [100 * r["accuracy"] for r in select(rows, network=network, kind=kind, ink=ink[0])],
            sides[kind],
        )
        for network, *_ in settings.networks
        for ink in (settings.ink, *settings.others)
        for kind in KINDS
    ]
    return Dots(
        title=f"Trained on digits in {settings.ink[0]} ink, tested on every ink",
        x=Axis("test accuracy (%), median and range"),
        dots=tuple(dots),
    )


def _gains(gains: Gains) -> Dots:
    return Dots(
        title="How much less accuracy is lost in other inks",
        x=Axis("loss avoided, mean over the other inks (points), with 95% interval"),
        dots=tuple(
            in_points(f"{network}, {COMPARED[kinds][1]}", gain)
            for (network, kinds), gain in gains.items()
        ),
        rule=Rule(0, "the same loss"),
    )


def _samples(settings: Robustness) -> Pictures:
    """Return the first test image in every ink, as grey as the network's mean over colours."""
    first = load(settings.data, folder=settings.folder).test
    one = Examples(first.inputs[:1], first.targets[:1])
    pictures = [
        Picture(ink[0], tuple(map(tuple, (1 - written(one, ink).inputs[0].mean(0)).tolist())))
        for ink in (settings.ink, *settings.others)
    ]
    return Pictures(title="The same digit in each ink, in shades of grey", pictures=tuple(pictures))


CLAIM = Claim(
    name="robustness",
    statement="Batch norm makes a network robust to covariate shift, such as new colours.",
    sources=(
        Source(
            "Ng's lecture on why batch norm works",
            "trained on black cats only, a network does badly on cats of other colours; batch norm "
            "limits how far such shifts reach the later layers",
        ),
        Source("Li et al. 2018 (AdaBN)", "statistics of the new domain adapt a network to it"),
        Source("Schneider et al. 2020", "so they do to corrupted images: mCE 62.2%, not 76.7%"),
    ),
    measurement=(
        "Digits in one ink on white paper are the training data, from the same weights and in the "
        "same mini-batches with and without batch norm; test accuracy is measured in other inks, "
        "unseen in training. Then batch norm adapts to each ink by `bnkit.adapt`, on unlabelled "
        "training images in that ink."
    ),
    criteria=(
        "What a network loses is its test accuracy in its own ink − its mean over the other inks. "
        "For each network three parts, each by the 95% interval over seeds of the paired "
        "difference in loss: batch norm as it is loses less than plain; batch norm adapted less "
        "than plain; adapted less than as it is. Shown above 0, refuted below 0.5 points; pairs in "
        "which one is below 80% in its own ink do not count. The claim holds if all parts do."
    ),
    sizes={
        "toy": Robustness(seeds=3, networks=(("mlp", 100, 0.1),), trained=0.5),
        "digits": Robustness(),
        "mnist": Robustness(
            data="mnist",
            networks=(("mlp", 3000, 0.01), ("dlology", 300, 0.05)),
            seeds=3,
            adapting=500,
        ),
    },
    run=run,
)
