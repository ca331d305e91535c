"""`made`: the sides of a comparison, each from the network as it was built."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from bnkit.behaviour import activation_of
from bnkit.dataflow import duplicate
from bnkit.names import one_of
from bnkit.norms import batch_norms
from bnkit.references import blaming, reference_to
from bnkit.surgery import SurgeryError, convert
from bnkit.surgery.folding.folding import survey

Change = Callable[[nn.Module], nn.Module]

GROUPS = 32  # at most (Wu and He 2018, section 3.1); as many as divide the channels
VIRTUAL = 16  # samples of a virtual batch

# As they are typed, and as they are called.
NAMES = {
    "plain": "plain",
    "batch": "batch norm",
    "group": "group norm",
    "layer": "layer norm",
    "instance": "instance norm",
    "ghost": "ghost batch norm",
}


def name_of(side: str | Change) -> str:
    """Return how a side is called; ValueError for an unknown name.

    >>> name_of("batch"), name_of("group norm"), name_of(duplicate)
    ('batch norm', 'group norm', 'duplicate')
    """
    if not isinstance(side, str):
        return reference_to(side).rpartition(":")[2].rpartition(".")[2]
    if side in NAMES.values():
        return side
    return one_of(NAMES, side, "side")


def made(
    side: str, change: str | Change, built: nn.Module, twin: Callable[[], nn.Module]
) -> nn.Module:
    """Return one side, by its name, of a network without batch norm, as it was `built`.

    `twin()` returns the network with batch norm added, whose places the other norms take; they
    begin as new layers do. `change` is the user's own function where the name is of one: it gets
    a copy. Raises SurgeryError for instance norm after a linear layer, which has one value a
    channel.
    """
    if side == "plain":
        return built
    if not isinstance(change, str):
        with blaming(f"the side {side!r} fails"):
            changed = change(duplicate(built))
        if not isinstance(changed, nn.Module):
            raise TypeError(
                f"the side {side!r} returned a {type(changed).__name__}: it must return the model"
            )
        return changed
    with_batch_norm = twin()
    return with_batch_norm if side == "batch norm" else with_other_norms(with_batch_norm, side)


def with_other_norms(model: nn.Module, side: str) -> nn.Module:
    """Return a copy of a network in which norms of this kind are in the places of batch norms.

    >>> model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48))
    >>> with_other_norms(model, "group norm")[1]
    GroupNorm(16, 48, eps=1e-05, affine=True, bias=True)
    """
    if side == "ghost batch norm":
        return convert(model, "ghost", virtual_batch_size=VIRTUAL)
    for path in batch_norms(model).layers:
        owner = model.get_submodule(path.rpartition(".")[0])
        if side == "instance norm" and isinstance(owner, nn.Linear):
            raise SurgeryError(
                f"instance norm takes the mean of a channel over one sample, and of '{path}' in a "
                f"{type(owner).__name__} a sample has one value: choose 'group' or 'layer'"
            )
    return convert(model, lambda layer: _grouped(layer, side))


def has_batch_norms(model: nn.Module) -> bool:
    """Return whether a network brings batch norms of its own."""
    return bool(batch_norms(model).layers)


def without_batch_norm(model: nn.Module, example: Any) -> nn.Module:
    """Return a copy without batch norms whose layers have their biases back, newly drawn.

    A layer has one where a batch norm reads what it computes: the batch norm had taken its place.
    It is drawn from the global generator as torch draws it for a new layer.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
    >>> without_batch_norm(model, torch.zeros(2, 4))
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): Identity()
      (2): ReLU()
    )
    """
    plain = duplicate(model)
    found = survey(model, example)
    matches = [match for match in found.matches if match.side == "before"]
    before = [share.layer.name for match in matches for share in match.shares if share.shifts]
    for path in before:
        layer: Any = plain.get_submodule(path)
        if getattr(layer, "bias", None) is None:
            layer.register_parameter("bias", _new_bias(layer))
    for path, batch_norm in batch_norms(plain).layers.items():
        plain.set_submodule(path, activation_of(batch_norm) or nn.Identity())
    return plain


def _grouped(layer: nn.Module, side: str) -> nn.Module:
    channels: int = layer.num_features  # type: ignore[assignment]  # every batch norm has them
    groups = {
        "group norm": math.gcd(GROUPS, channels),
        "layer norm": 1,
        "instance norm": channels,
    }[side]
    return nn.GroupNorm(groups, channels, eps=getattr(layer, "eps", 1e-5))


def _new_bias(layer: Any) -> nn.Parameter:
    """Return a bias as torch draws it, uniform within 1/√(inputs of an output)."""
    weight, transposed = layer.weight, getattr(layer, "transposed", False)
    features = getattr(layer, "out_channels", None) or layer.out_features
    inputs = weight[:, 0].numel() if transposed else weight[0].numel()
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(weight.new_empty(features).uniform_(-bound, bound))
