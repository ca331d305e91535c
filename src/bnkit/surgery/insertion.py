"""`insert`: batch norm in a trained network, which computes the same afterwards."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import nn

from bnkit.batches import Call, Inputs, as_example, calls_of
from bnkit.dataflow import ExampleError, duplicate
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.moments import Moments
from bnkit.observation import normalising_by_batch_statistics, observing_inputs, on_the_side
from bnkit.options import with_options
from bnkit.recalibration.samples import Sample, Samples, over_all_ranks
from bnkit.surgery.addition import AdditionOptions, nothing_to_normalise, plan_in_modes
from bnkit.surgery.operations import Edit, make_edits
from bnkit.surgery.plan import Plan
from bnkit.surgery.verification import (
    Distance,
    Outcome,
    SurgeryError,
    distance,
    run_itself,
)


@dataclass(frozen=True)
class Insertion(Plan):
    """The plan of `insert`, made from the statistics of so many `batches`.

    `in_training_mode` says how far the output on the first mini-batch, of so many `rows`, moves
    when all batch norms of the changed model normalise by its own statistics, as fine-tuning
    begins; None where it has one value per feature somewhere, which has no variance.
    """

    batches: int = 0
    rows: int = 0
    in_training_mode: Distance | None = field(default=None, metadata={"record": Distance})

    def __str__(self) -> str:
        table = super().__str__()
        return f"{table}\n{self._start_of_training()}" if self.edits else table

    def _start_of_training(self) -> str:
        place = f"In training mode, by the statistics of a mini-batch of {self.rows}"
        moved = self.in_training_mode
        if moved is None:
            return f"{place}: some layer gets one value per feature, which has no variance."
        return f"{place}: error {moved.error:.1e} (largest difference {moved.absolute:.1e})."


@with_options
def insert(
    model: nn.Module,
    batches: Any,
    *,
    tolerance: float | None = None,
    inputs: Inputs | None = None,
    **options: Unpack[AdditionOptions],
) -> nn.Module:
    """Return a copy of `model` with batch norm that computes the same in eval mode.

    The layers are those that `bnkit.add` chooses, with its `where`, `placement`, `momentum` and
    `eps`. In one pass over `batches`, in eval mode, the mean and variance of what each batch norm
    will get are pooled exactly, in float64, over all ranks where torch.distributed is initialised,
    all of which have to call this; they become its running statistics, and it starts with
    weight sqrt(running_var + eps) and bias running_mean, which undo them. Before the activation it
    absorbs the bias of its layer. `batches` and `inputs` are what `bnkit.batches.calls_of` takes.
    `model` stays as it is: make the optimizer for the copy afterwards.

    That the function is the same is checked on the first mini-batch, in float64 and, within
    `tolerance` (by default 1e-4 in float32), in the model's dtype. Raises SurgeryError where it is
    not, where nothing can be normalised, and for statistics that are not finite or of one value per
    feature; ExampleError if the model fails on the first mini-batch; ValueError where there is
    none. Errors of `batches` itself pass through as they are.

    >>> import torch
    >>> trained = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> batches = torch.randn(5, 20, 8)  # five mini-batches of 20
    >>> normalised = insert(trained, list(batches)).eval()
    >>> x = torch.randn(2, 8)
    >>> torch.allclose(normalised(x), trained(x), atol=1e-6), normalised[0].bias
    (True, None)
    """
    plan = plan_insertion(model, batches, tolerance=tolerance, inputs=inputs, **options)
    if not plan.edits:
        raise SurgeryError(nothing_to_normalise(model, plan, options["where"]))
    return plan.apply(model)


@with_options
def plan_insertion(
    model: nn.Module,
    batches: Any,
    *,
    tolerance: float | None = None,
    inputs: Inputs | None = None,
    **options: Unpack[AdditionOptions],
) -> Insertion:
    """Return what `insert` would do, with the proof that the function is the same.

    Raises what `insert` raises, but for a model in which nothing can be normalised.

    >>> import torch
    >>> trained = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> plan = plan_insertion(trained, [torch.randn(20, 8), torch.randn(7, 8)])
    >>> plan.edits[0].action, plan.batches, plan.proof.error < 1e-6
    ('normalise 16 features, absorb bias', 2, True)
    """
    if options["eps"] <= 0:
        raise ValueError(
            f"`eps` is {options['eps']}: it must be positive, or a constant feature divides by 0"
        )
    calls = calls_of(model, batches, inputs=inputs)
    first = next(calls)
    example = as_example(model, first)
    plan, before = plan_in_modes(model, example, both=False, **options)
    if not plan.edits:
        return Insertion((), plan.left_alone)
    moments, count = _measure(model, plan.edits, itertools.chain([first], calls))
    edits = tuple(_with_statistics(edit, moments[edit.layer], count) for edit in plan.edits)
    insertion = Insertion(edits, plan.left_alone, batches=count)
    insertion = insertion.verified(model, example, before=before, tolerance=tolerance)
    return dataclasses.replace(
        insertion,
        rows=next((len(t) for t in tensors_in(example) if t.dim()), 0),
        in_training_mode=_move_in_training_mode(before, insertion.apply(model), example),
    )


def _move_in_training_mode(before: Outcome, changed: nn.Module, example: Any) -> Distance | None:
    try:
        after = run_itself(changed, example, mode=normalising_by_batch_statistics)
    except ValueError:  # one value per channel
        return None
    return distance(before.outputs, after.outputs)


# --- the statistics of what new batch norms will get


def _measure(
    model: nn.Module, edits: Sequence[Edit], calls: Iterable[Call]
) -> tuple[Mapping[str, Moments], int]:
    """Return by path the moments of what the new batch norms will get, and the number of batches.

    They are pooled over one pass in eval mode, and over all ranks of torch.distributed: nothing is
    normalised yet, biases are still there.
    """
    observed = _with_norms_at_the_places(model, edits)
    norms: dict[str, Any] = {
        edit.layer: observed.get_submodule(edit.layer).batchnorm for edit in edits
    }
    for layer in norms:
        observed.get_submodule(layer).batchnorm = nn.Identity()
    places = {layer: observed.get_submodule(f"{layer}.batchnorm") for layer in norms}

    def measure() -> Samples:
        batches = 0
        with on_the_side(observed), observing_inputs(observed, places) as seen:
            for batches, call in enumerate(calls, start=1):
                run_batch(observed, call, f"mini-batch {batches} of `batches`")
        return {path: Sample(moments, batches, moments.count) for path, moments in seen.items()}

    samples = over_all_ranks(norms, measure, None, turn=1)
    batches = max(sample.inputs for sample in samples.values())
    return {path: sample.moments for path, sample in samples.items()}, batches


def _with_norms_at_the_places(model: nn.Module, edits: Sequence[Edit]) -> nn.Module:
    """Return a copy whose layers own their batch norms, and keep their biases."""
    biased = [
        dataclasses.replace(edit, options={**edit.options, "drop_bias": False}) for edit in edits
    ]
    return make_edits(duplicate(model), biased)


def run_batch(model: nn.Module, call: Call, place: str) -> None:
    """Run `model` on a copy of a mini-batch; ExampleError, which names `place`, if it fails."""
    args, kwargs = replace_tensors(call, lambda t: t.detach().clone())
    try:
        model(*args, **kwargs)
    except Exception as error:
        raise ExampleError(
            f"the model fails on {place}: {type(error).__name__}: {error}"
        ) from error


def _with_statistics(edit: Edit, moments: Moments, batches: int) -> Edit:
    """Return the edit whose batch norm has these running statistics, and undoes them."""
    if moments.count < 2:
        raise SurgeryError(
            f"layer '{edit.layer}' gives 1 value per feature over all of `batches`, and one value "
            f"has no variance: pass more"
        )
    values = {
        "mean": moments.mean,
        "variance": moments.unbiased_variance,
        "batches": torch.tensor(batches),
    }
    action = edit.action.replace("drop bias", "absorb bias")
    return dataclasses.replace(edit, action=action, values=values)
