"""`gradient_at`: loss and gradient of a network at given weights, as in a training step."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.observation import normalising_by_batch_statistics


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
