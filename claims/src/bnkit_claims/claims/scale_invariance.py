"""Claim 7: batch norm makes a layer independent of the scale of its weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.loaders import first_of
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedRatio
from bnkit.functional import batch_norm
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Line, Lines, Rule, band
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond
from bnkit_claims.core.pairs import Records, ratio_of, select
from bnkit_claims.core.trainings import experiment_for, in_segments

ROUNDING = 1e-9  # far above float64's rounding of such sums, far below any effect
HUGE = 1000  # growth of the norm beyond which a run diverges, and its chart would show nothing else


@dataclass(frozen=True, kw_only=True)
class ScaleInvariance(ClaimSettings):
    """The factors on the weights, and the training in which the weights grow."""

    scales: tuple[float, ...] = (0.01, 0.1, 10.0, 100.0)
    eps: float = 1e-5  # that of torch and of bnkit
    visible: float = 0.01  # an output, Jacobian or gradient off by more is no longer the same
    learning_rates: tuple[float, ...] = (0.1, 1.0, 3.0)
    activation: str = "relu"
    init: str = "glorot"
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 800
    every: int = 40


def run(settings: ScaleInvariance, run_cases: RunCases = in_turn) -> Evidence:
    """Return how much a layer with batch norm feels the scale of its weights."""
    seeds = range(settings.seeds)
    scaled = run_cases(scale, settings, list(seeds))
    trained = run_cases(grow, settings, list(product(SIDES, settings.learning_rates, seeds)))
    return judge(settings, scaled, trained)


def scale(settings: ScaleInvariance, seed: int) -> dict[str, Any]:
    """Return the relative errors of the three identities, for each factor on the weights.

    Ioffe and Szegedy 2015, section 3.3: BN((aW)u) = BN(Wu); ∂BN((aW)u)/∂u = ∂BN(Wu)/∂u;
    ∂BN((aW)u)/∂(aW) = (1/a) ∂BN(Wu)/∂W. Once in float64 with an eps that rounding swallows, once
    in float32 with that of practice. W is the first layer at its initial weights, u a mini-batch.
    """
    drawn = experiment_for(settings, activations=[settings.activation])
    inputs, _ = first_of(drawn.loaders(seed).train)
    weight = _weights(drawn.network("plain", settings.activation, seed))[0].detach()
    u = inputs.flatten(1)
    return {
        "seed": seed,
        "without eps": [identities(u.double(), weight.double(), a, 1e-30) for a in settings.scales],
        "with eps": [identities(u, weight, a, settings.eps) for a in settings.scales],
    }


def identities(u: Tensor, weight: Tensor, a: float, eps: float) -> dict[str, float]:
    """Return by how much output, Jacobian and gradient at aW miss what they are at W.

    The Jacobians are compared by their products with one random tensor, the same for both.
    """
    direction = torch.randn(len(u), len(weight), generator=torch.Generator().manual_seed(0))
    y, of_u, of_weight = _derivatives(u, weight, direction.to(u), eps)
    y_a, of_u_a, of_weight_a = _derivatives(u, a * weight, direction.to(u), eps)
    return {
        "output": _error(y_a, y),
        "Jacobian": _error(of_u_a, of_u),
        "gradient": _error(a * of_weight_a, of_weight),
    }


def _derivatives(
    u: Tensor, weight: Tensor, direction: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    u, weight = u.clone().requires_grad_(), weight.clone().requires_grad_()
    y = batch_norm(u @ weight.T, None, None, training=True, eps=eps)
    of_u, of_weight = torch.autograd.grad((y * direction).sum(), (u, weight))
    return y.detach(), of_u, of_weight


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def grow(settings: ScaleInvariance, case: tuple[Side, float, int]) -> dict[str, Any]:
    """Return how the weights of the hidden layers grow in training, and how they are moved.

    `norms` are |W| ÷ |W| at the start, over all hidden layers; `along` is the mean share of a
    unit's gradient that points along its weights, |cos|; `effective` the effective learning rate,
    rate ÷ |w|², in the mean over units (van Laarhoven 2017).
    """
    side, rate, seed = case
    drawn = experiment_for(settings, activations=[settings.activation])
    model = drawn.network(side, settings.activation, seed)
    weights = _weights(model)
    start = _norm(weights)
    norms, along, effective = [], [], []
    finished = True
    for segment in in_segments(
        model, drawn.loaders(seed), learning_rate=rate, steps=settings.steps, every=settings.every
    ):
        finished = segment is None or segment.outcome == "finished"
        if finished:
            norms.append(_norm(weights) / start)
            effective.append(_effective_rate(weights, rate))
        if finished and segment is not None:
            along.append(_along(weights))  # the gradients of the latest step are still there
    return {
        "side": side,
        "rate": rate,
        "seed": seed,
        "growth": norms[-1] if finished else None,
        "along": sum(along) / len(along) if along else None,
        "norms": norms,
        "effective": effective,
    }


def _weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of the hidden layers, each (units, inputs)."""
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]


def _norm(weights: Sequence[Tensor]) -> float:
    return math.sqrt(math.fsum(w.detach().double().square().sum().item() for w in weights))


def _effective_rate(weights: Sequence[Tensor], rate: float) -> float:
    squared = torch.cat([weight.detach().square().sum(1) for weight in weights])
    return (rate / squared).mean().item()


def _along(weights: Sequence[Tensor]) -> float:
    cosines = [
        torch.cosine_similarity(weight.detach(), weight.grad, dim=1)
        for weight in weights
        if weight.grad is not None
    ]
    return torch.cat(cosines).abs().mean().item()


def judge(settings: ScaleInvariance, scaled: Records, trained: Records) -> Evidence:
    """Return the verdict: the identities hold, and the weights grow less in training."""
    exact = max(worst(each["without eps"][i]) for each in scaled for i in _places(settings))
    used = [max(worst(each["with eps"][i]) for each in scaled) for i in _places(settings)]
    growth = {r: ratio_of(select(trained, rate=r), "growth") for r in settings.learning_rates}
    along = ", ".join(f"{_mean_along(trained, side)} {side}" for side in SIDES)
    return Evidence(
        headline=_headline(settings, used, growth),
        parts=(
            Part("the same layer without eps", _off(exact, ".0e"), exact < ROUNDING),
            *(
                Part(
                    f"the same layer with weights times {a:g}", _off(e, ".2%"), e < settings.visible
                )
                for a, e in zip(settings.scales, used, strict=True)
            ),
            *(
                Part(
                    f"less growth of weights at learning rate {rate:g}",
                    _growth(ratio),
                    _stable(ratio),
                )
                for rate, ratio in growth.items()
            ),
        ),
        beside=(Beside("share of a gradient along the weights", along),),
        notes=_notes(settings, exact, used),
        figures=(
            _identity_chart(settings, scaled),
            _norm_chart(settings, trained),
            _rate_chart(settings, trained),
        ),
        details=(
            *(
                {
                    "seed": e["seed"],
                    "without eps": _worsts(e["without eps"]),
                    "with eps": _worsts(e["with eps"]),
                }
                for e in scaled
            ),
            *({n: v for n, v in each.items() if not isinstance(v, list)} for each in trained),
        ),
    )


def worst(errors: Any) -> float:
    """Return the largest of the three errors; what is not finite counts as infinite."""
    return max(error if math.isfinite(error) else math.inf for error in errors.values())


def _worsts(errors: Sequence[Any]) -> list[float]:
    return [worst(each) for each in errors]


def _places(settings: ScaleInvariance) -> range:
    return range(len(settings.scales))


def _stable(ratio: PairedRatio) -> bool | None:
    if ratio.only_batch_norm >= 3 and not ratio.only_plain:
        return True  # without batch norm the training diverges, and with it never
    return beyond(ratio, bar=1, negligible=1.01)


def _off(error: float, precision: str) -> str:
    return f"off by up to {error:{precision}}" if math.isfinite(error) else "off without bound"


def _headline(
    settings: ScaleInvariance, used: Sequence[float], growth: Mapping[float, PairedRatio]
) -> str:
    pairs = zip(settings.scales, used, strict=True)
    off = " or ".join(f"{a:g}" for a, error in pairs if error >= settings.visible)
    small, large = min(settings.scales), max(settings.scales)
    scaled = (
        f"{off} the layer is {_off(max(used), '.0%')}"
        if off
        else f"{small:g} to {large:g} the layer stays the same within {settings.visible:.0%}"
    )
    less = sum(_stable(ratio) is True for ratio in growth.values())
    return (
        f"With its weights multiplied by {scaled}; in training the weights are shown to grow less "
        f"with batch norm at {less} of {len(growth)} learning rates."
    )


def _growth(ratio: PairedRatio) -> str:
    diverged = {"plain": ratio.only_batch_norm, "batch norm": ratio.only_plain}
    times = "over a million" if (ratio.ratio or 0) > 1e6 else str(ratio)  # about to diverge
    said = [f"{times} times as much without batch norm"] if ratio.both else []
    said += [
        f"{n + ratio.neither}/{ratio.pairs} {side} runs diverged"
        for side, n in diverged.items()
        if n + ratio.neither
    ]
    return ", ".join(said)


def _mean_along(trained: Records, side: Side) -> str:
    shares = [e["along"] for e in trained if e["side"] == side and e["along"] is not None]
    return f"{math.fsum(shares) / len(shares):.1%}" if shares else "unknown"


def _notes(settings: ScaleInvariance, exact: float, used: Sequence[float]) -> tuple[str, ...]:
    if exact >= ROUNDING or max(used) < settings.visible:
        return ()
    note = (
        "Contrary to its sources, which leave eps out, the layer does depend on the scale of its "
        f"weights where the variance of its units comes close to eps ({settings.eps:g})."
    )
    return (note,)


def _identity_chart(settings: ScaleInvariance, scaled: Records) -> Lines:
    kinds = {
        "eps 1e-30, float64": "without eps",
        f"eps {settings.eps:g}, float32": "with eps",
    }
    lines = tuple(
        band(name, settings.scales, [_worsts(each[key]) for each in scaled])
        for name, key in kinds.items()
    )
    return Lines(
        title="How much a layer changes when its weights are scaled, with eps and without",
        x=Axis("factor on the weights", logarithmic=True),
        y=Axis("relative error of output, Jacobian, gradient: largest, range", logarithmic=True),
        lines=lines,
        rule=Rule(settings.visible, "visible"),
    )


def _norm_chart(settings: ScaleInvariance, trained: Records) -> Lines:
    return Lines(
        title="Weights with batch norm grow less: gradients at right angles, ever smaller steps"
        if all(
            _stable(ratio_of(select(trained, rate=r), "growth")) for r in settings.learning_rates
        )
        else "How the hidden weights grow in training",
        x=Axis("training step"),
        y=Axis(f"norm of the hidden weights ÷ at the start, range; none over {HUGE:,}"),
        lines=_curves(settings, trained, "norms", highest=HUGE),
    )


def _rate_chart(settings: ScaleInvariance, trained: Records) -> Lines:
    lines = _curves(settings, select(trained, side="batch norm"), "effective")
    falls = all(line.y[0] and line.y[-1] and line.y[-1] < line.y[0] for line in lines)
    return Lines(
        title="The effective learning rate falls as the weights grow"
        if falls
        else "How the effective learning rate goes in training",
        x=Axis("training step"),
        y=Axis("learning rate ÷ |w|², mean over units; median and range", logarithmic=True),
        lines=lines,
    )


def _curves(
    settings: ScaleInvariance, trained: Records, what: str, *, highest: float = math.inf
) -> tuple[Line, ...]:
    steps = list(range(0, settings.steps + 1, settings.every))
    lines = []
    for rate, side in product(settings.learning_rates, SIDES):
        runs = [
            [value if value is None or value <= highest else None for value in each[what]]
            for each in select(trained, side=side, rate=rate)
        ]
        if runs:
            lines.append(band(side, steps, runs, side=side, panel=f"learning rate {rate:g}"))
    return tuple(lines)


CLAIM = Claim(
    name="scale-invariance",
    statement="Batch norm makes a layer independent of the scale of its weights.",
    sources=(
        Source(
            "Ioffe and Szegedy 2015, section 3.3",
            "scaled weights change neither the output nor the Jacobian, and shrink the gradient "
            "as they grow, which stabilises the growth of the parameters",
        ),
        Source(
            "van Laarhoven 2017",
            "so the learning rate that counts is the set one divided by the squared weight norm",
        ),
    ),
    measurement=(
        "The first layer's weights are multiplied by each factor a, and output, Jacobian and "
        "gradient (times a) of the normalised layer on a mini-batch are compared with those at the "
        "factor 1: once in float64 with an eps of 1e-30, once in float32 with that of practice. "
        "Then both sides of a network are trained at several rates, and the norm of all hidden "
        "weights is followed, with the share of each unit's gradient along its weights."
    ),
    criteria=(
        "Holds if without eps the identities hold to 1e-9; if with eps output, Jacobian and "
        "gradient are within 1% at each factor; and if at each learning rate the norm of the "
        "hidden weights grows less with batch norm: the 95% interval over seeds of plain ÷ batch "
        "norm of the growth factors lies above 1 (against: below 1.01), or the plain network "
        "diverges in three runs or more and batch norm in none where the plain one trains."
    ),
    sizes={
        "toy": ScaleInvariance(seeds=3, learning_rates=(1.0,), hidden=(16, 16), steps=60, every=20),
        "digits": ScaleInvariance(),
        "mnist": ScaleInvariance(data="mnist", steps=3000, every=100),
    },
    run=run,
)
