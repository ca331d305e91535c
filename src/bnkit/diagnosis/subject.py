"""The copy of a model that is diagnosed, and what is read from the original beside it."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bnkit.dataflow import duplicate
from bnkit.diagnosis.evidence import Parallel
from bnkit.norms import unwrapped
from bnkit.observation import follow_mode


class _Passing(nn.Module):
    """What stands where a DistributedDataParallel stood, so that all paths stay."""

    def __init__(self, module: nn.Module, around: nn.Module) -> None:
        super().__init__()
        self.module = module
        follow_mode(self, around)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def subject_of(model: nn.Module) -> tuple[nn.Module, tuple[Parallel, ...]]:
    """Return a copy of `model` without wrappers, and the DistributedDataParallel that it had.

    A wrapper around all of it is taken off; one around a part gives way to a module of the same
    paths. Raises as `bnkit.dataflow.duplicate` does for what cannot be copied.

    >>> subject_of(nn.DataParallel(nn.Linear(2, 2)))
    (Linear(in_features=2, out_features=2, bias=True), ())
    """
    around = (
        [Parallel("", model.forward_sync_buffers)]
        if isinstance(model, DistributedDataParallel)
        else []
    )
    inner = unwrapped(model)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a torch.nn.Module")
    parts = {
        path: part
        for path, part in inner.named_modules()
        if isinstance(part, DistributedDataParallel)
    }
    found = around + [Parallel(path, part.forward_sync_buffers) for path, part in parts.items()]
    if not parts:
        return duplicate(inner), tuple(found)
    passing = {id(part): _Passing(duplicate(part.module), part) for part in parts.values()}
    return copy.deepcopy(inner, passing), tuple(found)


def parameter_groups(
    model: nn.Module, optimizer: Optimizer | None
) -> tuple[Mapping[str, Any], ...] | None:
    """Return the optimizer's groups with the names of the model's parameters for these.

    >>> layer = nn.Linear(2, 2)
    >>> parameter_groups(layer, torch.optim.SGD([layer.bias], lr=1.0))[0]["params"]
    ['bias']
    """
    if optimizer is None:
        return None
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`optimizer` is a {type(optimizer).__name__}: pass the torch.optim.Optimizer that "
            f"trains the model"
        )
    names = {id(parameter): name for name, parameter in unwrapped(model).named_parameters()}
    return tuple(
        {**group, "params": [names[id(p)] for p in group["params"] if id(p) in names]}
        for group in optimizer.param_groups
    )


@contextmanager
def preserved_generators(batches: Any) -> Iterator[None]:
    """Give back the state of the generators that a DataLoader and its samplers own."""
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    owners = [batches, *samplers, getattr(samplers[1], "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
