"""What new batch norms will get: its statistics over all mini-batches, and how they undo it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bnkit.batches import Call
from bnkit.dataflow import ExampleError, duplicate
from bnkit.dataflow.tensors import replace_tensors
from bnkit.moments import Moments
from bnkit.observation import observing_inputs, on_the_side
from bnkit.surgery.operations import Edit, make_edits
from bnkit.surgery.promise import SurgeryError


@dataclass(frozen=True)
class Statistics:
    """The moments, by the path of a layer, of what its new batch norm gets in so many batches."""

    moments: Mapping[str, Moments]
    batches: int


def measure(model: nn.Module, edits: Sequence[Edit], calls: Iterable[Call]) -> Statistics:
    """Return the statistics at the places of all `edits`, pooled over one pass in eval mode.

    `edits` give batch norms to layers, as those of `add` do; nothing is normalised yet, and biases
    are still there. `model`, what `calls` give and the random generators stay as they are.

    Raises ExampleError, with the number of the mini-batch, if the model fails on one.
    """
    observed = _with_nothing_at_the_places(model, edits)
    places = {edit.layer: observed.get_submodule(f"{edit.layer}.batchnorm") for edit in edits}
    batches = 0
    with on_the_side(observed), observing_inputs(observed, places) as seen:
        for batches, call in enumerate(calls, start=1):
            _run(observed, call, batches)
    return Statistics(seen, batches)


def _with_nothing_at_the_places(model: nn.Module, edits: Sequence[Edit]) -> nn.Module:
    """Return a copy whose layers own, instead of their batch norm, a module that does nothing."""
    biased = [
        dataclasses.replace(edit, options={**edit.options, "drop_bias": False}) for edit in edits
    ]
    observed = make_edits(duplicate(model), biased)
    for edit in edits:
        observed.get_submodule(edit.layer).batchnorm = nn.Identity()
    return observed


def _run(model: nn.Module, call: Call, number: int) -> None:
    args, kwargs = replace_tensors(call, lambda t: t.detach().clone())
    try:
        model(*args, **kwargs)
    except Exception as error:
        raise ExampleError(
            f"the model fails on mini-batch {number} of `batches`: {type(error).__name__}: {error}"
        ) from error


def with_statistics(edit: Edit, statistics: Statistics) -> Edit:
    """Return the edit whose batch norm has these running statistics, and undoes them.

    Raises SurgeryError, with the layer, for one value per feature.
    """
    moments = statistics.moments[edit.layer]
    if moments.count < 2:
        raise SurgeryError(
            f"layer '{edit.layer}' gives 1 value per feature over all of `batches`, and one value "
            f"has no variance: pass more"
        )
    values = {
        "mean": moments.mean,
        "variance": moments.unbiased_variance,
        "batches": torch.tensor(statistics.batches),
    }
    action = edit.action.replace("drop bias", "absorb bias")
    return dataclasses.replace(edit, action=action, values=values)
