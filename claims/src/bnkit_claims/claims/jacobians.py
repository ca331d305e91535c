"""Claim 8: batch norm brings the singular values of the layers' Jacobians close to 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.data import load
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedDifference
from bnkit.observation import on_the_side
from bnkit.recalibration import recalibrate
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dots, Lines, Rule, band, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, difference_of, points, select
from bnkit_claims.core.trainings import experiment_for, in_segments

WHENS = ("at the start", "after training")
SHARES = tuple((i + 0.5) / 50 for i in range(50))  # of the sorted singular values, for the chart


@dataclass(frozen=True, kw_only=True)
class Jacobians(ClaimSettings):
    """The networks whose layers are differentiated, and what counts as close to 1."""

    activations: tuple[str, ...] = ("sigmoid", "relu")
    learning_rates: tuple[float, ...] = (1.0, 0.1)  # one for each activation
    inits: tuple[str, ...] = ("glorot", "normal:0.05")
    hidden: tuple[int, ...] = (100, 100, 100, 100)
    batch_size: int = 60
    steps: int = 500
    examples: int = 8
    within: float = 2.0  # a singular value is close to 1 from 1 / within to within
    negligible: float = 0.05  # a gain in the share of these that is too small to matter


def run(settings: Jacobians, run_cases: RunCases = in_turn) -> Evidence:
    """Return the singular values of the layers' Jacobians, at the start and after training."""
    cases = product(SIDES, settings.activations, settings.inits, range(settings.seeds))
    return judge(settings, run_cases(spectra, settings, list(cases)))


def spectra(settings: Jacobians, case: tuple[Side, str, str, int]) -> dict[str, Any]:
    """Return, for both moments, the share of singular values close to 1, and their quantiles."""
    side, activation, init, seed = case
    drawn = experiment_for(settings, activations=[activation], init=init)
    model = drawn.network(side, activation, seed)
    rate = settings.learning_rates[settings.activations.index(activation)]
    segments = in_segments(
        model, drawn.loaders(seed), learning_rate=rate, steps=settings.steps, every=settings.steps
    )
    network: dict[str, Any] = {"side": side, "activation": activation, "init": init, "seed": seed}
    for when, _ in zip(WHENS, segments, strict=False):
        values = singular_values(settings, model, drawn.loaders(seed))
        network[when] = summary(values, settings.within)
    return network


def summary(values: Tensor, within: float) -> dict[str, Any]:
    """Return the share of singular values from 1 / within to within, and all in 50 quantiles."""
    flat = values.double().flatten()
    close = (flat >= 1 / within) & (flat <= within)
    quantiles = torch.quantile(flat, torch.tensor(SHARES, dtype=torch.float64))
    return {"close": close.double().mean().item(), "quantiles": quantiles.tolist()}


def singular_values(settings: Jacobians, model: nn.Module, loaders: Any) -> Tensor:
    """Return (layers, examples, units): the singular values of each hidden layer's Jacobian.

    A layer leads from the inputs of one activation to those of the next (the normalised vectors,
    with batch norm: Ioffe and Szegedy 2015, section 3.3), for one example, with the mean and
    variance of its units taken over 20 mini-batches and held still.
    """
    if next(model.buffers(), None) is not None:  # of batch norm
        model = recalibrate(model, list(islice(loaders.train, 20)), progress=False)
    inputs = load(settings.data, folder=settings.folder).held_out.inputs[: settings.examples]
    layers = list(model.children())  # flatten, linear, activation, …, linear
    with on_the_side(model):
        values = [
            torch.linalg.svdvals(_jacobians(nn.Sequential(*layers[:i]), layers[i : i + 2], inputs))
            for i in range(2, len(layers) - 2, 2)
        ]
    return torch.stack(values)


def _jacobians(before: nn.Module, layer: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    """Return (examples, outputs, inputs of the layer): one Jacobian for each example."""
    block = nn.Sequential(*layer)
    z = before(inputs)
    # By example, which eval mode allows: no unit's statistics depend on the other examples.
    jacobian = torch.func.jacrev(lambda each: block(each[None])[0])
    jacobians: Tensor = torch.func.vmap(jacobian)(z)
    return jacobians


def judge(settings: Jacobians, found: Records) -> Evidence:
    """Return the verdict: closer to 1 than without batch norm, and close to 1 for the most part."""
    setups = list(product(settings.activations, settings.inits))
    gains = {
        f"{_named(activation, init)}, {when}": difference_of(
            _shares(select(found, activation=activation, init=init), when), "close"
        )
        for activation, init in setups
        for when in WHENS
    }
    shares = {name: _with_batch_norm(found, name) for name in settings.activations}
    closer = tuple(
        Part(f"closer to 1: {name}", points(gain), _closer(settings, gain))
        for name, gain in gains.items()
    )
    return Evidence(
        headline=_headline(shares, closer),
        parts=(
            *closer,
            *(
                Part(f"most values close to 1: {n}", _range(s), _mostly(s))
                for n, s in shares.items()
            ),
        ),
        figures=(_spectrum_chart(settings, found), _share_chart(settings, found)),
        details=tuple(
            {
                **{n: v for n, v in each.items() if n not in WHENS},
                **{f"close {when}": each[when]["close"] for when in WHENS},
            }
            for each in found
        ),
    )


def _named(activation: str, init: str) -> str:
    return f"{activation} from {init}"


def _shares(found: Records, when: str) -> list[Mapping[str, Any]]:
    return [{**each, "close": each[when]["close"]} for each in found]


def _with_batch_norm(found: Records, activation: str) -> list[float]:
    chosen = select(found, side="batch norm", activation=activation)
    return [each[when]["close"] for each in chosen for when in WHENS]


def _closer(settings: Jacobians, gain: PairedDifference) -> bool | None:
    return beyond(gain, bar=0, negligible=settings.negligible)


def _mostly(shares: Sequence[float]) -> bool | None:
    """Return whether more than half are close to 1 in each of the runs, both times; at least 3."""
    if len(shares) < 3 * len(WHENS):
        return None
    if min(shares) > 0.5:
        return True
    return False if max(shares) <= 0.5 else None


def _headline(shares: Mapping[str, Sequence[float]], closer: Sequence[Part]) -> str:
    close = " and ".join(f"{median(values):.0%} ({n})" for n, values in shares.items() if values)
    more = sum(part.shown is True for part in closer)
    return (
        f"With batch norm {close or 'an unknown share'} of the singular values are close to 1; "
        f"{more} of {len(closer)} comparisons show more than without it."
    )


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return "unknown"
    return f"{median(shares):.0%}, from {min(shares):.0%} to {max(shares):.0%} over the runs"


def _spectrum_chart(settings: Jacobians, found: Records) -> Lines:
    init = settings.inits[0]
    lines = []
    for activation, when, side in product(settings.activations, WHENS, SIDES):
        chosen = select(found, side=side, activation=activation, init=init)
        runs = [[_drawn(value) for value in each[when]["quantiles"]] for each in chosen]
        lines.append(band(side, SHARES, runs, side=side, panel=f"{activation}, {when}"))
    return Lines(
        title=f"The singular values of the hidden layers' Jacobians, from {init}, in order",
        x=Axis("share of the singular values"),
        y=Axis("singular value, median and range; none drawn below 0.01", logarithmic=True),
        lines=tuple(lines),
        rule=Rule(1, "orthogonal"),
    )


def _drawn(value: float) -> float | None:
    return value if value >= 0.01 else None  # those of dead units are 0, which has no logarithm


def _share_chart(settings: Jacobians, found: Records) -> Dots:
    dots = [
        ranged(
            f"{_named(activation, init)}, {when}",
            side,
            [
                100 * each[when]["close"]
                for each in select(found, side=side, activation=activation, init=init)
            ],
            side,
        )
        for activation, init, when, side in product(
            settings.activations, settings.inits, WHENS, SIDES
        )
    ]
    return Dots(
        title="How many singular values are close to 1",
        x=Axis(f"share within a factor of {settings.within:g} of 1 (%), median and range"),
        dots=tuple(dots),
        rule=Rule(50, "half"),
    )


CLAIM = Claim(
    name="jacobians",
    statement="Batch norm brings the singular values of the layers' Jacobians close to 1.",
    sources=(
        Source(
            "Ioffe and Szegedy 2015, section 3.3",
            "a conjecture, not a finding: between two normalised vectors, were they Gaussian and "
            "the layer linear, the Jacobian would be orthogonal; that would keep gradients alive",
        ),
    ),
    measurement=(
        "The Jacobian of each hidden layer, from the inputs of one activation to those of the "
        "next, is taken for single examples, with the statistics of the units held fixed, at the "
        "initial weights and after training, on both sides, from good and from small initial "
        "weights. What counts is the share of its singular values between one half and two."
    ),
    criteria=(
        "For each activation, initialisation and moment: closer to 1 where the 95% interval over "
        "seeds of the share, batch norm − plain, lies above 0 (against: below 5 points). For each "
        "activation: close to 1 where with batch norm more than half the values are, in every run "
        "(against: in none)."
    ),
    sizes={
        "toy": Jacobians(
            seeds=3,
            activations=("sigmoid",),
            learning_rates=(1.0,),
            inits=("glorot",),
            hidden=(12, 12),
            steps=30,
            examples=2,
        ),
        "digits": Jacobians(),
        "mnist": Jacobians(data="mnist", steps=2000),
    },
    run=run,
)
