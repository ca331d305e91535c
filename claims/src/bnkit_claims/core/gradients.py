"""Loss and gradient of a network at given weights, and how learning moves what layers see."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.observation import normalising_by_batch_statistics, seeing_inputs


def gradient_at(
    model: nn.Module, parameters: Mapping[str, Tensor], batch: Any
) -> tuple[float, dict[str, Tensor]]:
    """Return the mean cross-entropy of `batch` and its gradient, with these `parameters`.

    `parameters` are named as in `model`, which itself stays as it is. Batch norms normalise by the
    mini-batch, as in training, and keep their running statistics.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> weight = {"weight": torch.zeros(2, 2)}
    >>> loss, gradient = gradient_at(model, weight, (torch.ones(1, 2), torch.tensor([0])))
    >>> round(loss, 4), gradient["weight"].tolist()
    (0.6931, [[-0.5, -0.5], [0.5, 0.5]])
    """
    inputs, targets = batch
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with normalising_by_batch_statistics(model), torch.enable_grad():
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, (inputs,)), targets)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, gradients, strict=True))


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of `model` by name, cut off from training."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance of two gradients or sets of parameters of the same names.

    >>> distance({"weight": torch.tensor([3.0, 0.0])}, {"weight": torch.tensor([0.0, 4.0])})
    5.0
    """
    return norm({name: left[name].double() - right[name].double() for name in left})


def norm(gradient: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all the tensors together.

    >>> norm({"weight": torch.tensor([3.0]), "bias": torch.tensor([4.0])})
    5.0
    """
    return math.sqrt(math.fsum(p.double().square().sum().item() for p in gradient.values()))


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
    layers = list(dict.fromkeys(name.partition(".")[0] for name in own))  # in forward order
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
    # The first layer that has not moved: those after it have not either, but are not looked at.
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
