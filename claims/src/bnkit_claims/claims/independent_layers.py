"""Claim 20: with batch norm layers learn more independently of those before them."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.experiments.data import load
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedDifference
from bnkit.experiments.training import Training, train
from bnkit.moments import Moments
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Lines, Rule, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, beyond
from bnkit_claims.core.gradients import inputs_and_outputs
from bnkit_claims.core.pairs import Records, difference_of, select
from bnkit_claims.core.trainings import experiment_for, in_segments

Disturbance = Literal["noise", "scale", "training"]
DISTURBANCES: tuple[Disturbance, ...] = ("noise", "scale", "training")
EFFECTS = ("shift", "change", "rise")


@dataclass(frozen=True, kw_only=True)
class IndependentLayers(ClaimSettings):
    """The trained network, and how its first hidden layer is disturbed.

    `noise` are standard deviations, in units of the weights' root mean square; `factors` multiply
    the weights and the bias; `further` are steps in which the first layer alone is trained on.
    The verdict is on the middle one of each.
    """

    activations: tuple[str, ...] = ("sigmoid", "relu")
    learning_rates: tuple[float, ...] = (1.0, 0.1)  # one for each activation
    init: str = "glorot"
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 1200
    noise: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)
    factors: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 5.0)
    further: tuple[int, ...] = (5, 10, 25, 50, 100)
    negligible_change: float = 0.05  # of the inputs' own spread
    negligible_rise: float = 0.05  # of the loss, in nats


def run(settings: IndependentLayers, run_cases: RunCases = in_turn) -> Evidence:
    """Return how far a disturbance of the first layer reaches."""
    cases = product(SIDES, settings.activations, range(settings.seeds))
    return judge(settings, run_cases(disturb, settings, list(cases)))


def disturb(settings: IndependentLayers, case: tuple[Side, str, int]) -> dict[str, Any]:
    """Return, for each disturbance and strength, what it does to a trained network.

    `shift` is how far the distributions of the last hidden layer's inputs move, `change` how far
    each single input does (see `shift_of` and `change_of`), and `rise` that of the loss, all on
    the same held-out examples, by whose statistics batch norms normalise, as in training.
    """
    side, activation, seed = case
    drawn = experiment_for(settings, activations=[activation])
    model = drawn.network(side, activation, seed)
    rate = settings.learning_rates[settings.activations.index(activation)]
    loaders = drawn.loaders(seed)
    list(  # one segment, to its end
        in_segments(model, loaders, learning_rate=rate, steps=settings.steps, every=settings.steps)
    )
    held_out = load(settings.data, folder=settings.folder).held_out
    examples = held_out.inputs[:1000], held_out.targets[:1000]
    before = _seen(model, examples)
    found: dict[str, Any] = {"side": side, "activation": activation, "seed": seed}
    found["loss"] = before[1] if math.isfinite(before[1]) else None
    for kind in DISTURBANCES:
        effects = []
        for strength in _strengths(settings, kind):
            other = disturbed(model, kind, strength, rate, loaders, seed)
            effects.append(_effects(before, _seen(other, examples)))
        found[kind] = {name: [effect[name] for effect in effects] for name in EFFECTS}
    return found


def disturbed(
    model: nn.Module, kind: Disturbance, strength: float, rate: float, loaders: Any, seed: int
) -> nn.Module:
    """Return a copy of `model` whose first hidden layer is another; see `IndependentLayers`."""
    other = copy.deepcopy(model)
    first = next(layer for layer in other.modules() if isinstance(layer, nn.Linear))
    own = [first.weight] if first.bias is None else [first.weight, first.bias]
    if kind == "training":
        _train_first(other, first, int(strength), rate, loaders)
        return other
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in own:
            if kind == "scale":
                parameter.mul_(strength)
            else:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(strength * parameter.square().mean().sqrt() * noise)
    return other


def _train_first(model: nn.Module, first: nn.Module, steps: int, rate: float, loaders: Any) -> None:
    """Train the first hidden layer of `model` alone, in place."""
    model.requires_grad_(False)
    first.requires_grad_(True)
    training = Training(learning_rate=rate, steps=steps, evaluate_every=steps)
    train(model, loaders.train, loaders.held_out, training)


def _strengths(settings: IndependentLayers, kind: Disturbance) -> tuple[float, ...]:
    return {"noise": settings.noise, "scale": settings.factors, "training": settings.further}[kind]


def _seen(model: nn.Module, examples: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    """Return the inputs of the last hidden activation (N, units), and the loss."""
    inputs, targets = examples
    seen, outputs = inputs_and_outputs(model, list(model.children())[-2], inputs)
    return seen, F.cross_entropy(outputs, targets).item()


def _effects(before: tuple[Tensor, float], after: tuple[Tensor, float]) -> dict[str, float | None]:
    effects = {
        "shift": shift_of(before[0], after[0]),
        "change": change_of(before[0], after[0]),
        "rise": after[1] - before[1],
    }
    return {name: value if math.isfinite(value) else None for name, value in effects.items()}


def shift_of(before: Tensor, after: Tensor) -> float:
    """Return how far the units' (N, units) distributions move, in their standard deviations.

    It is the mean over units of |change of the mean| + |change of the standard deviation|, divided
    by the mean standard deviation before.
    """
    old, new = Moments.of(before), Moments.of(after)
    spread, new_spread = old.variance.sqrt(), new.variance.sqrt()
    moved = (new.mean - old.mean).abs() + (new_spread - spread).abs()
    return (moved.mean() / spread.mean()).item()


def change_of(before: Tensor, after: Tensor) -> float:
    """Return the root mean square change of the inputs (N, units), in their standard deviations."""
    change = (after - before).double().square().mean()
    return (change / Moments.of(before).variance.mean()).sqrt().item()


def judge(settings: IndependentLayers, found: Records) -> Evidence:
    """Return the verdict: each effect of each disturbance is smaller with batch norm."""
    parts = {effect: tuple(_parts(settings, found, effect)) for effect in EFFECTS}
    return Evidence(
        headline=_headline(parts),
        parts=tuple(chain.from_iterable(parts.values())),
        notes=(
            "Only gamma and beta can move a normalised distribution: its stability is built in.",
        ),
        figures=tuple(_chart(settings, found, kind, effect) for kind, effect in _CHARTS),
        details=tuple(_rows(settings, found)),
    )


_CHARTS: tuple[tuple[Disturbance, str], ...] = (
    ("training", "shift"),
    ("training", "change"),
    ("noise", "change"),
    ("noise", "rise"),
    ("scale", "rise"),
)
_KIND = {"noise": "noise", "scale": "scaling", "training": "training"}
_EFFECT = {
    "shift": "shift of the distributions",
    "change": "change of the inputs",
    "rise": "rise of the loss",
}


def _parts(settings: IndependentLayers, found: Records, effect: str) -> Iterator[Part]:
    for activation, kind in product(settings.activations, DISTURBANCES):
        if (kind, effect) != ("training", "rise"):  # which is a fall
            gain = _gain(select(found, activation=activation), kind, effect)
            what = f"smaller {_EFFECT[effect]} by {_KIND[kind]} ({activation})"
            yield Part(what, _reduced(effect, gain), _smaller(settings, effect, gain))


def _gain(found: Records, kind: Disturbance, effect: str) -> PairedDifference:
    """Return batch norm − plain at the middle strength."""
    rows = [{**each, effect: each[kind][effect][len(each[kind][effect]) // 2]} for each in found]
    return difference_of(rows, effect)


def _smaller(settings: IndependentLayers, effect: str, gain: PairedDifference) -> bool | None:
    """Return whether plain − batch norm is shown to be above 0."""
    if gain.low is None or gain.high is None:
        return None
    rise = effect == "rise"
    negligible = settings.negligible_rise if rise else settings.negligible_change
    return beyond(gain.times(-1), bar=0, negligible=negligible)


def _reduced(effect: str, gain: PairedDifference) -> str:
    if gain.difference is None:
        return "by an unknown amount"
    unit = "nats" if effect == "rise" else "standard deviations"
    return f"by {gain.times(-1):+.2f} {unit}"


def _headline(parts: Mapping[str, Sequence[Part]]) -> str:
    shift, change, rise = (
        f"{sum(part.shown is True for part in parts[effect])} of {len(parts[effect])}"
        for effect in EFFECTS
    )
    return (
        f"With batch norm a disturbed first layer demonstrably shifts later distributions less in "
        f"{shift} cases, changes single inputs less in {change}, and raises the loss less in "
        f"{rise}."
    )


def _rows(settings: IndependentLayers, found: Records) -> Iterator[dict[str, Any]]:
    for each, kind in product(found, DISTURBANCES):
        fixed = {name: each[name] for name in ("side", "activation", "seed", "loss")}
        for place, strength in enumerate(_strengths(settings, kind)):
            effects = {effect: each[kind][effect][place] for effect in EFFECTS}
            yield {**fixed, "disturbance": kind, "strength": strength, **effects}


def _chart(settings: IndependentLayers, found: Records, kind: Disturbance, effect: str) -> Lines:
    lines = tuple(
        band(
            side,
            _strengths(settings, kind),
            [each[kind][effect] for each in select(found, activation=activation, side=side)],
            side=side,
            panel=activation,
        )
        for activation, side in product(settings.activations, SIDES)
    )
    return Lines(
        title=f"{_EFFECT[effect].capitalize()} after {_DISTURBED[kind]}",
        x=Axis(_STRENGTH[kind], logarithmic=True),
        y=Axis(_UNIT[effect]),
        lines=lines,
        rule=Rule(0, "undisturbed"),
    )


_DISTURBED = {
    "noise": "noise on the first layer's weights",
    "scale": "multiplying the first layer's weights",
    "training": "training the first layer alone",
}
_STRENGTH = {
    "noise": "standard deviation of the noise ÷ root mean square of the weights",
    "scale": "factor on the weights",
    "training": "further training steps of the first layer",
}
_UNIT = {
    "shift": "shift of the last hidden layer's inputs (standard deviations), median and range",
    "change": "change of the last hidden layer's inputs (standard deviations), median and range",
    "rise": "rise of the held-out loss (nats), median and range",
}


CLAIM = Claim(
    name="independent-layers",
    statement="With batch norm each layer learns more independently of the layers before it.",
    sources=(
        Source(
            "Andrew Ng's lectures",
            "it limits how much learning in earlier layers moves the distribution that later "
            "layers see, so that each layer learns a little more on its own",
        ),
    ),
    measurement=(
        "A network is trained; then its first hidden layer is disturbed: by noise on its weights, "
        "by multiplying them, or by training that layer alone further. On the same held-out "
        "examples, batch norms normalising by these as in training, the inputs of the last hidden "
        "layer are compared with those before: how far the mean and the standard deviation of each "
        "unit move, how far each single input moves, and by how much the loss rises."
    ),
    criteria=(
        "At the middle strength of each disturbance, for each activation: the shift and the change "
        "of the inputs (in their standard deviations) and, but for training, the rise of the loss "
        "(in nats) are smaller with batch norm where the 95% interval over seeds of plain − batch "
        "norm lies above 0; against the claim where it ends below 0.05."
    ),
    sizes={
        "toy": IndependentLayers(
            seeds=3,
            activations=("relu",),
            learning_rates=(0.1,),
            hidden=(12, 12),
            steps=60,
            noise=(0.5,),
            factors=(2.0,),
            further=(10,),
        ),
        "digits": IndependentLayers(),
        "mnist": IndependentLayers(data="mnist", steps=3000),
    },
    run=run,
)
