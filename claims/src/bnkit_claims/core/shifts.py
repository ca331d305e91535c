"""How far learning in early layers moves what later layers see: their inputs, their gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.observation import normalising_by_batch_statistics, seeing_inputs
from bnkit_claims.core.gradients import distance, gradient_at, norm, parameters_of


@torch.no_grad()
def inputs_and_outputs(model: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `layer`, a module of `model`, gets for these `inputs`, and what `model` returns.

    Batch norms normalise by the statistics of `inputs`, as in training, and keep their own.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU())
    >>> seen, output = inputs_and_outputs(model, model[1], torch.tensor([[1.0], [3.0]]))
    >>> seen.flatten(), output.flatten()
    (tensor([-1.0000,  1.0000]), tensor([0.0000, 1.0000]))
    """
    found: list[Tensor] = []

    def see(_name: str, _layer: nn.Module, values: Tensor) -> None:
        found.append(values)

    with normalising_by_batch_statistics(model), seeing_inputs(model, {"layer": layer}, see):
        outputs = model(inputs)
    return found[0], outputs


def gradient_shift(model: nn.Module, batch: Any, rate: float) -> dict[str, float]:
    """Return how one step of the layers before each layer changes its gradient, averaged.

    Santurkar et al. 2018, definition 2.1: G is the gradient of a layer, and G' the same once all
    layers before it have taken their step. `distance` is |G' − G|, `relative` this ÷ |G|, and
    `cosine` that of the angle between them.
    """
    own = parameters_of(model)
    _, gradient = gradient_at(model, own, batch)
    layers = list(dict.fromkeys(name.partition(".")[0] for name in own))
    found = [
        _shift_of(model, batch, own, gradient, layers[:i], rate) for i in range(1, len(layers))
    ]
    return {name: math.fsum(shift[name] for shift in found) / len(found) for name in found[0]}


def _shift_of(
    model: nn.Module,
    batch: Any,
    own: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    before: Sequence[str],
    rate: float,
) -> dict[str, float]:
    moved = {
        name: value - rate * gradient[name] if name.partition(".")[0] in before else value
        for name, value in own.items()
    }
    _, changed = gradient_at(model, moved, batch)
    layer = next(n.partition(".")[0] for n in own if n.partition(".")[0] not in before)
    old, new = (_of_layer(each, layer) for each in (gradient, changed))
    apart, lengths = distance(old, new), norm(old) * norm(new)
    product_ = math.fsum((old[name] * new[name]).sum().item() for name in old)
    return {
        "distance": apart,
        "relative": apart / max(norm(old), 1e-30),
        "cosine": product_ / max(lengths, 1e-30),
    }


def _of_layer(gradient: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name: value for name, value in gradient.items() if name.startswith(f"{layer}.")}
