"""Claim 12: batch norm makes biases redundant, and costs no parameters, but time."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.experiments.loaders import first_of
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedRatio
from bnkit.experiments.training import Training, train
from bnkit.observation import evaluating
from bnkit.surgery import fold
from bnkit.surgery.normalized import Normalized
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Rule, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part, above_one
from bnkit_claims.core.pairs import Records, ratio_of, rounded, select
from bnkit_claims.core.trainings import experiment_for

ROUNDING = 1e-9  # relative, in float64: what is less is rounding
FOLDED = "folded"


@dataclass(frozen=True, kw_only=True)
class Cost(ClaimSettings):
    """The networks, and the bursts of training steps and of answers that are timed."""

    networks: tuple[str, ...] = ("mlp", "vgg", "resnet")
    batch_size: int = 60
    bursts: int = 5
    burst: int = 8


def run(settings: Cost, run_cases: RunCases = in_turn) -> Evidence:
    """Return what biases do beside batch norm, and what it costs in parameters and seconds."""
    seeds = range(settings.seeds)
    moved = run_cases(biases, settings, list(product(settings.networks, SIDES, seeds)))
    counted = run_cases(numbers, settings, list(settings.networks))
    timed = run_cases(seconds, settings, list(product(settings.networks, seeds)))
    return judge(settings, moved, counted, [row for rows in timed for row in rows])


def biases(settings: Cost, case: tuple[str, Side, int]) -> dict[str, Any]:
    """Return how much the biases of the layers that batch norm normalises do, on either side."""
    network, side, seed = case
    drawn = experiment_for(settings, network, activations=["relu"])
    twin = drawn.network("batch norm", "relu", seed)
    layers = [path for path, layer in twin.named_modules() if isinstance(layer, Normalized)]
    inputs, targets = first_of(drawn.loaders(seed).train)
    model = drawn.network(side, "relu", seed).double()
    output, gradient = bias_effect(model, layers, inputs.double(), targets, seed=seed)
    named = {"network": network, "side": side, "seed": seed}
    return {**named, "output": output, "gradient": gradient}


def bias_effect(
    model: nn.Module, layers: Sequence[str], inputs: Tensor, targets: Tensor, *, seed: int
) -> tuple[float, float]:
    """Return how far the outputs in training mode move with biases, and the biases' gradient.

    Standard normal numbers are added to the bias of each layer, or become its bias. The first
    number is the largest change of an output ÷ the largest output; the second the largest, over
    the layers, of ‖∂loss/∂bias‖ ÷ ‖∂loss/∂weight‖, for the cross-entropy.

    >>> layer = nn.Sequential(nn.Linear(2, 2).double(), nn.BatchNorm1d(2).double())
    >>> x, y = torch.eye(2).double().repeat(4, 1), torch.arange(2).repeat(4)
    >>> bias_effect(layer, ["0"], x, y, seed=0)[0] < 1e-12
    True
    """
    generator = torch.Generator().manual_seed(seed)
    before = model(inputs).detach()
    chosen: list[Any] = [model.get_submodule(path) for path in layers]
    for layer in chosen:
        shift = torch.randn(len(layer.weight), generator=generator, dtype=layer.weight.dtype)
        old = 0 if layer.bias is None else layer.bias.detach()  # `add` removes the biases
        layer.bias = nn.Parameter(old + shift)
    after = model(inputs)
    torch.autograd.backward(F.cross_entropy(after, targets))
    moved = (after.detach() - before).abs().max() / before.abs().max()
    felt = max(layer.bias.grad.norm() / layer.weight.grad.norm() for layer in chosen)
    return float(moved), float(felt)


def numbers(settings: Cost, network: str) -> dict[str, Any]:
    """Return how many parameters and running statistics the network has, and when folded."""
    drawn = experiment_for(settings, network, activations=["relu"])
    sides = {side: drawn.network(side, "relu", seed=0) for side in SIDES}
    folded = fold(sides["batch norm"], drawn.example())
    return {
        "network": network,
        **{side: _parameters(model) for side, model in sides.items()},
        FOLDED: _parameters(folded),
        "running": _running(sides["batch norm"]),
    }


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _running(model: nn.Module) -> int:
    kept = model.state_dict()
    return sum(b.numel() for path, b in model.named_buffers() if path in kept and b.dim())


def seconds(settings: Cost, case: tuple[str, int]) -> list[dict[str, Any]]:
    """Return the processor's seconds for a training step and for the answers to a mini-batch.

    Each is that of the quickest of several bursts, in which the sides take turns. With one
    thread, processor time is what a clock would show on an idle machine.
    """
    network, seed = case
    drawn = experiment_for(settings, network, activations=["relu"])
    models: dict[str, nn.Module] = {side: drawn.network(side, "relu", seed) for side in SIDES}
    inputs, targets = first_of(drawn.loaders(seed).train)
    plan = Training(0.01, steps=settings.burst, evaluate_every=settings.burst)
    batch = [(inputs, targets)]
    one = [(inputs[:1], targets[:1])]
    steps = _quickest(
        {name: partial(train, model, batch, one, plan) for name, model in models.items()},
        settings,
    )
    models[FOLDED] = fold(models["batch norm"], inputs)
    asked = _quickest(
        {name: partial(_answer, m, inputs, settings.burst) for name, m in models.items()}, settings
    )
    return [
        {"network": network, "seed": seed, "side": name, "step": steps.get(name), "answer": answer}
        for name, answer in asked.items()
    ]


def _quickest(programs: Mapping[str, Callable[[], object]], settings: Cost) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(settings.bursts):
        for name, program in programs.items():
            began = time.process_time()
            program()
            taken[name].append((time.process_time() - began) / settings.burst)
    return {name: min(times) for name, times in taken.items()}


@torch.no_grad()
def _answer(model: nn.Module, inputs: Tensor, times: int) -> None:
    with evaluating(model):
        for _ in range(times):
            model(inputs)


def judge(settings: Cost, moved: Records, counted: Records, timed: Records) -> Evidence:
    """Return the verdict: biases that do nothing, fewer parameters, and slower steps."""
    steps = {name: _slowdown(select(timed, network=name), "step") for name in settings.networks}
    biases = [_biases_part(name, moved) for name in settings.networks]
    counts = [_count_part(row) for row in counted]
    more = ", ".join(row["network"] for row in counted if row["batch norm"] > row["plain"])
    against = f"Contrary to a source, batch norm adds parameters in {more}."
    return Evidence(
        headline=_headline(biases, counts, steps.values()),
        parts=(*biases, *counts, *(_seconds_part(name, ratio) for name, ratio in steps.items())),
        beside=tuple(_beside(moved, counted, timed)),
        notes=(against,) if more else (),
        figures=(_seconds_chart(steps, timed), _numbers_chart(counted), _bias_chart(moved)),
        details=(*counted, *moved),
    )


def _headline(
    biases: Collection[Part], counts: Collection[Part], steps: Iterable[PairedRatio]
) -> str:
    redundant, fewer = (
        f"{sum(part.shown is True for part in parts)} of {len(parts)}" for parts in (biases, counts)
    )
    known = sorted(step.ratio for step in steps if step.ratio is not None)
    times = " to ".join(dict.fromkeys(map(rounded, (*known[:1], *known[-1:]))))
    return (
        f"With batch norm biases prove redundant in {redundant} networks, parameters are fewer in "
        f"{fewer}, and a training step takes {times or rounded(None)} times as long."
    )


def _biases_part(network: str, moved: Records) -> Part:
    rows = select(moved, network=network, side="batch norm")
    output, gradient = (max(row[what] for row in rows) for what in ("output", "gradient"))
    figures = (
        f"outputs move by at most {output:.1g} of their size, gradient {gradient:.1g} of the "
        f"weights'"
    )
    return Part(f"redundant biases in {network}", figures, _redundant(rows))


def _redundant(rows: Records) -> bool | None:
    if len(rows) < 3:
        return None
    return all(max(row["output"], row["gradient"]) < ROUNDING for row in rows)


def _count_part(row: Mapping[str, Any]) -> Part:
    plain, batch_norm = row["plain"], row["batch norm"]
    figures = f"{plain:,} without, {batch_norm:,} with batch norm"
    return Part(f"fewer parameters in {row['network']}", figures, batch_norm < plain)


def _seconds_part(network: str, ratio: PairedRatio) -> Part:
    shown = above_one(ratio)
    return Part(f"slower steps in {network}", f"{ratio} times as long", shown)


def _beside(moved: Records, counted: Records, timed: Records) -> Iterator[Beside]:
    most = max(row["output"] for row in select(moved, side="plain"))
    yield Beside(
        "the same biases in plain networks", f"outputs move by up to {most:.2g} of their size"
    )
    for row in counted:
        network, rows = row["network"], select(timed, network=row["network"])
        yield Beside(f"running statistics in {network}", f"{row['running']:,}")
        yield Beside(f"answers by {network}", f"{_slowdown(rows, 'answer')} times as long")
        folded = f"{_slowdown(rows, 'answer', FOLDED)} times as long, {row[FOLDED]:,} parameters"
        yield Beside(f"answers by {network}, folded", folded)


def _slowdown(timed: Records, what: str, side: str = "batch norm") -> PairedRatio:
    rows = [row for row in timed if row["side"] in ("plain", side)]
    return ratio_of(rows, what, over=side, under="plain")


def _bias_sentence(moved: Records) -> str:
    most = {side: max(row["output"] for row in select(moved, side=side)) for side in SIDES}
    return (
        f"Random biases before batch norm move outputs by at most {most['batch norm']:.0e} of "
        f"their size, in the plain networks by up to {most['plain']:.2g}"
    )


def _seconds_chart(steps: Mapping[str, PairedRatio], timed: Records) -> Dots:
    dots = [
        Dot(name, label, ratio.ratio, ratio.low, ratio.high)
        for name, step in steps.items()
        for rows in [select(timed, network=name)]
        for label, ratio in {
            "training step": step,
            "answer": _slowdown(rows, "answer"),
            "answer, folded": _slowdown(rows, "answer", FOLDED),
        }.items()
    ]
    known = ", ".join(
        f"{ratio.ratio:.2f} in {name}" for name, ratio in steps.items() if ratio.ratio
    )
    return Dots(
        title=f"A training step takes this many times as long with batch norm: {known}",
        x=Axis("seconds, batch norm ÷ plain, with 95% interval"),
        dots=tuple(dots),
        rule=Rule(1, "equal"),
    )


def _numbers_chart(counted: Records) -> Dots:
    dots = [
        Dot(row["network"], label, 100 * (count / row["plain"] - 1))
        for row in counted
        for label, count in {
            "parameters": row["batch norm"],
            "with running statistics": row["batch norm"] + row["running"],
            "folded": row[FOLDED],
        }.items()
    ]
    more = sum(row["batch norm"] > row["plain"] for row in counted)
    return Dots(
        title=f"{more} of {len(counted)} networks have more parameters with batch norm than plain",
        x=Axis("numbers that the network keeps, beyond the plain network's (%)"),
        dots=tuple(dots),
        rule=Rule(0, "plain"),
    )


def _bias_chart(moved: Records) -> Dots:
    networks = list(dict.fromkeys(row["network"] for row in moved))
    dots = [
        ranged(
            f"{name}, {what}", side, _visible(select(moved, network=name, side=side), what), side
        )
        for name in networks
        for what in ("output", "gradient")
        for side in SIDES
    ]
    return Dots(
        title=_bias_sentence(moved),
        x=Axis(
            "relative change of outputs; gradient, biases ÷ weights; range",
            logarithmic=True,
        ),
        dots=tuple(dots),
        rule=Rule(ROUNDING, "rounding"),
    )


def _visible(rows: Records, what: str) -> list[float]:
    return [max(row[what], 1e-18) for row in rows]  # 0 has no place on a logarithmic axis


CLAIM = Claim(
    name="cost",
    statement=(
        "Batch norm makes the biases before it redundant, so that a network has fewer parameters; "
        "a training step takes longer."
    ),
    sources=(
        Source(
            "Ioffe and Szegedy 2015, section 3.2", "the bias can be ignored: beta takes its role"
        ),
        Source("A student's notes on Udacity's lesson", "a network with it has fewer parameters"),
        Source("Udacity's lesson", "a step takes about twice as long, 2 to 2.7 times as printed"),
    ),
    measurement=(
        "In float64, random numbers become the biases of all layers that batch norm normalises: "
        "how far do the outputs in training mode move, and what gradient do the biases get? The "
        "same is done to the plain network, for comparison. Parameters are counted (biases go, "
        "gamma and beta come), and running statistics beside them. Training steps, and answers in "
        "eval mode, are timed in turns in one thread, with the processor's clock; answers also "
        "after batch norm is folded into the layers."
    ),
    criteria=(
        "By network: biases are redundant if for every seed (three at least) outputs move by less "
        "than 1e-9 of their size, and the gradient of the biases is less than 1e-9 of that of the "
        "weights. Parameters are fewer if their count is. Steps are slower if the 95% interval "
        "over seeds of the ratio of seconds, batch norm ÷ plain, lies above 1; one that ends below "
        "1.1 speaks against it. The claim holds if all parts do."
    ),
    sizes={
        "toy": Cost(seeds=3, networks=("mlp",), bursts=3, burst=3),
        "digits": Cost(),
        "mnist": Cost(data="mnist"),
    },
    run=run,
)
