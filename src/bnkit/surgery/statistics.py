"""What new batch norms will get: its statistics over all mini-batches, and how they undo it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call
from bnkit.dataflow import ExampleError
from bnkit.dataflow.tensors import replace_tensors
from bnkit.moments import Moments
from bnkit.observation import observing_inputs, on_the_side
from bnkit.surgery.plan import Edit
from bnkit.surgery.promise import SurgeryError
from bnkit.surgery.structure import replay


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
    observed = replay(model, [{**edit.structure, "drop_bias": False} for edit in edits])
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

    Its weight is sqrt(running_var + eps) and its bias the running mean, to which the bias that its
    layer loses is added (Ioffe and Szegedy 2015, section 3.1: with these the transform is the
    identity). All are computed in float64 from the running statistics as they are stored, so that
    nothing but the rounding of each is left.

    Raises SurgeryError, with the layer, for one value per feature.
    """
    moments = statistics.moments[edit.layer]
    if moments.count < 2:
        raise SurgeryError(
            f"layer '{edit.layer}' gives 1 value per feature over all of `batches`, and one value "
            f"has no variance: pass more"
        )

    def change(model: nn.Module) -> None:
        layer = model.get_submodule(edit.layer)
        absorbed = _bias_of(layer) if edit.structure.get("drop_bias") else torch.zeros(())
        edit.change(model)
        _fill(layer.batchnorm, moments, absorbed, statistics.batches)
        _refuse_what_is_not_finite(edit.layer, layer.batchnorm)

    action = edit.action.replace("drop bias", "absorb bias")
    return dataclasses.replace(edit, action=action, change=change)


def _fill(batch_norm: Any, moments: Moments, absorbed: Tensor, batches: int) -> None:
    """Set the statistics, less the bias that was in them and is no more, and what undoes them."""
    state = batch_norm.state_dict()  # the tensors themselves
    state["running_mean"].copy_(moments.mean.cpu() - absorbed)
    state["running_var"].copy_(moments.unbiased_variance)
    state["weight"].copy_((_wide(state["running_var"]) + batch_norm.eps).sqrt())
    state["bias"].copy_(_wide(state["running_mean"]) + absorbed)
    state["num_batches_tracked"].fill_(batches)


def _bias_of(layer: nn.Module) -> Tensor:
    return _wide(layer.get_parameter("bias"))


def _wide(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


def _refuse_what_is_not_finite(path: str, batch_norm: Any) -> None:
    if not all(t.isfinite().all() for t in batch_norm.state_dict().values()):
        raise SurgeryError(
            f"the statistics of layer '{path}' over `batches` are not finite: it gives NaN or "
            f"infinite values, or such whose square overflows; look for them in the mini-batches, "
            f"or leave the layer out by `where`"
        )
