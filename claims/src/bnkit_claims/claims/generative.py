"""Claim 17: a generative adversarial network needs batch norm in both of its parts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.experiments.data import batches, load
from bnkit.experiments.loaders import seed_everything
from bnkit.experiments.results import Side
from bnkit.experiments.statistics import PairedRatio
from bnkit.experiments.training import Training, train
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Lines, Picture, Pictures, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.dcgan import AdversarialStep, SampleMeasure, discriminator, generator, sample
from bnkit_claims.core.evidence import Beside, Evidence, Part
from bnkit_claims.core.pairs import Records, above_one_or_alone, ratio_of, rounded, select
from bnkit_claims.core.trainings import experiment_for

Kind = Literal["neither", "generator", "discriminator", "both"]
KINDS: tuple[Kind, ...] = ("neither", "generator", "discriminator", "both")
PLACES: dict[Kind, str] = {
    "neither": "without batch norm",
    "generator": "in the generator only",
    "discriminator": "in the discriminator only",
    "both": "in both networks",
}
SHOWN = 3  # rows and columns of the samples to look at


@dataclass(frozen=True, kw_only=True)
class Generative(ClaimSettings):
    """The size of a DCGAN, its training, and the classifier whose features the score is in."""

    width: int = 16  # feature maps at the finest resolution; twice as many at the coarser one
    noise: int = 32
    batch_size: int = 64
    steps: int = 300
    every: int = 50
    learning_rate: float = 2e-3  # published: 2e-4, for many epochs
    beta1: float = 0.5
    scored: int = 1000  # images on either side of the distance
    last: int = 3  # measurements at the end whose median is the score
    features: int = 32
    classifier_steps: int = 300


def run(settings: Generative, run_cases: RunCases = in_turn) -> Evidence:
    """Return how close samples come to the data, with batch norm in either network or in both."""
    return judge(settings, run_cases(play, settings, list(product(KINDS, range(settings.seeds)))))


def play(settings: Generative, case: tuple[Kind, int]) -> dict[str, Any]:
    """Return the distance of samples from the data while the two networks train, and some samples.

    `real` is the distance of held-out images from the same training images: the best there is.
    """
    kind, seed = case
    data = load(settings.data, folder=settings.folder)
    measure = _measure(settings)
    seed_everything(seed)
    side = data.input_shape[1]
    in_make, in_doubt = kind in ("generator", "both"), kind in ("discriminator", "both")
    make = generator(side, width=settings.width, noise=settings.noise, batch_norm=in_make)
    doubt = discriminator(side, width=settings.width, batch_norm=in_doubt)
    drawn = batches(data.train, settings.batch_size, generator=torch.Generator().manual_seed(seed))
    update = AdversarialStep(
        make,
        doubt,
        noise=settings.noise,
        learning_rate=settings.learning_rate,
        beta1=settings.beta1,
    )
    curve, samples = [], torch.empty(0)
    for step in range(1, settings.steps + 1):
        update(2 * next(drawn)[0] - 1)
        if step % settings.every == 0:
            samples = sample(make, settings.scored, settings.noise)
            curve.append(measure.distance(samples))
    return {
        "kind": kind,
        "seed": seed,
        "distances": curve,
        "score": _score(curve, settings.last),
        "real": measure.distance(data.held_out.inputs[: settings.scored]),
        "classes": measure.classes(samples),
        "samples": _tiled(samples) if seed == 0 else None,
        "data": _tiled(data.held_out.inputs) if seed == 0 else None,
    }


def _measure(settings: Generative) -> SampleMeasure:
    """Return the measure in a classifier trained here, the same one for every case."""
    drawn = experiment_for(settings, hidden=[100, settings.features])
    classifier, loaders = drawn.network("plain", "relu", seed=0), drawn.loaders(seed=0)
    steps = settings.classifier_steps
    if not isinstance(classifier, nn.Sequential):
        raise TypeError(f"the classifier is a {type(classifier).__name__}, not a Sequential")
    train(classifier, loaders.train, loaders.held_out, Training(0.2, steps=steps))
    data = load(settings.data, folder=settings.folder)
    return SampleMeasure(classifier, data.train.inputs[: settings.scored])


def _score(curve: Sequence[float | None], last: int) -> float | None:
    """Return the median of the last distances; None where any of them is missing."""
    known = [value for value in curve[-last:] if value is not None]
    return median(known) if len(known) == len(curve[-last:]) else None


def _tiled(images: Tensor) -> list[list[float]]:
    """Return the first images as one, SHOWN by SHOWN, at most 16 pixels a side, with margins."""
    small = F.avg_pool2d(images[: SHOWN**2].nan_to_num(), -(-images.shape[3] // 16))
    small = F.pad(small, (1, 1, 1, 1))
    height, width = small.shape[2:]
    tiles = small.view(SHOWN, SHOWN, height, width)
    whole = tiles.transpose(1, 2).reshape(SHOWN * height, SHOWN * width)
    return [[round(value, 2) for value in row] for row in whole.tolist()]


def judge(settings: Generative, found: Records) -> Evidence:
    """Return the verdict: each distance ratio, neither ÷ with, above 1 with its interval."""
    ratios = {kind: _ratio(found, kind) for kind in KINDS[1:]}
    return Evidence(
        headline=_headline(found, ratios),
        parts=tuple(
            Part(
                f"closer samples, batch norm {PLACES[kind]}",
                _figures(ratio),
                above_one_or_alone(ratio),
            )
            for kind, ratio in ratios.items()
        ),
        beside=tuple(_distances(found)),
        figures=(_curves(settings, found, ratios), _pictures(found)),
        details=tuple(
            {k: row[k] for k in ("kind", "seed", "score", "real", "classes")} for row in found
        ),
    )


def _ratio(found: Records, kind: Kind) -> PairedRatio:
    return ratio_of(
        [row for row in found if row["kind"] in ("neither", kind)],
        "score",
        by="kind",
        over="neither",
        under=kind,
    )


def _headline(found: Records, ratios: Mapping[Kind, PairedRatio]) -> str:
    if all(row["score"] is None for row in select(found, kind="neither")):
        return (
            f"Without batch norm no run ends in finite numbers; with it in both networks "
            f"{ratios['both'].only_batch_norm} of {ratios['both'].pairs} do."
        )
    closer = {
        kind: "an unknown number of times" if r.ratio is None else f"{rounded(r.ratio)}×"
        for kind, r in ratios.items()
    }
    return (
        f"Batch norm in both networks brings samples {closer['both']} closer to the data, in the "
        f"discriminator only {closer['discriminator']}, in the generator only "
        f"{closer['generator']}."
    )


def _figures(ratio: PairedRatio) -> str:
    pairs = ratio.pairs
    if ratio.both == pairs:
        return f"{ratio} times"
    plain, batch_norm = ratio.both + ratio.only_plain, ratio.both + ratio.only_batch_norm
    finite = f"finite in {plain}/{pairs} runs without, {batch_norm}/{pairs} with batch norm"
    return f"{ratio} times, {finite}" if ratio.both else finite


def _distances(found: Records) -> Iterator[Beside]:
    for kind in KINDS:
        where = PLACES[kind] if kind == "neither" else f"with batch norm {PLACES[kind]}"
        scores = [r["score"] for r in select(found, kind=kind) if r["score"] is not None]
        distance = f"{median(scores):.3g}" if scores else "finite in no run"
        yield Beside(f"median distance {where}", distance)
    real = median(row["real"] for row in found)
    yield Beside("median distance of held-out images", f"{real:.3g}")


def _label(kind: Kind) -> str:
    return PLACES[kind] if kind == "neither" else f"BN {PLACES[kind]}"


def _side(kind: Kind) -> Side | None:
    sides: dict[Kind, Side] = {"neither": "plain", "both": "batch norm"}
    return sides.get(kind)


def _curves(settings: Generative, found: Records, ratios: dict[Kind, PairedRatio]) -> Lines:
    both = ratios["both"]
    steps = range(settings.every, settings.steps + 1, settings.every)
    lines = [
        band(
            _label(kind),
            steps,
            [row["distances"] for row in select(found, kind=kind)],
            side=_side(kind),
        )
        for kind in KINDS
    ]
    return Lines(
        title=f"Without batch norm the samples end {both.ratio:.1f} times as far from the data"
        if both.ratio is not None and math.isfinite(both.ratio)
        else "How far the samples are from the data",
        x=Axis("training step"),
        y=Axis("Fréchet distance from the data, median and range", logarithmic=True),
        lines=tuple(lines),
    )


def _pictures(found: Records) -> Pictures:
    shown = [row for row in found if row["samples"] is not None]
    classes = {row["kind"]: row["classes"] for row in shown}
    pictures = [Picture(_label(row["kind"]), _rows(row["samples"])) for row in shown]
    return Pictures(
        title=(
            f"Samples of the first seed: {classes['both']} of the classes with batch norm in both "
            f"networks, {classes['neither']} without it"
        ),
        pictures=(*pictures, Picture("data", _rows(shown[0]["data"]))),
    )


def _rows(values: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values))


CLAIM = Claim(
    name="generative",
    statement="A deep convolutional GAN needs batch norm in its generator and its discriminator.",
    sources=(
        Source(
            "Radford et al. 2016, section 3",
            "batch norm in both networks, but at the generator's output and the discriminator's "
            "input, lets deep generators begin to learn and keeps them from one single sample",
        ),
    ),
    measurement=(
        "A small DCGAN (two convolutions in each network, Adam with beta 0.5, weights of standard "
        "deviation 0.02) is trained with batch norm in neither network, in one, and in both, with "
        "the same learning rate and number of steps. The score is the Fréchet distance between "
        "samples, made with running statistics, and training images, each a normal distribution "
        "in the 32 features of the last hidden layer of a classifier trained here; it is "
        "comparable within this claim only. A run's score is the median of its last three "
        "measurements. Classes count where the classifier finds them in 2% of the samples."
    ),
    criteria=(
        "Three parts: batch norm in the generator, in the discriminator, in both. Each is shown "
        "where the 95% interval over seeds of the distance without batch norm ÷ with it lies "
        "above 1, and refuted where it ends below 1.1."
    ),
    sizes={
        "toy": Generative(
            seeds=3, width=4, steps=6, every=2, scored=100, features=8, classifier_steps=20
        ),
        "digits": Generative(seeds=3),
        "mnist": Generative(data="mnist", steps=800, every=100, classifier_steps=600),
    },
    run=run,
)
