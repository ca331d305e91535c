"""`prove_same_function`: the promise that a changed model computes the same, checked by running."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnkit.dataflow import duplicate
from bnkit.dataflow.tensors import replace_tensors
from bnkit.surgery.distance import Distance, Outcome, distance, parting_layer, run

EXACT = 1e-10  # what rounding in float64 may leave of a promise
_TOLERANCES = {
    torch.float64: EXACT,
    torch.complex128: EXACT,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
}
_TOLERANCE_IN_HALF_PRECISION = 1e-2
_WIDEST = frozenset([torch.float64, torch.complex128])


class SurgeryError(ValueError):
    """A change to a model is impossible, or did not keep its promise; the message says where."""


@dataclass(frozen=True)
class Proof:
    """How far the outputs of a changed model are from the original's, on one example in eval mode.

    `error` is max|a − b| / max|a| and `absolute` max|a − b|, the largest over all outputs, in the
    dtype of the model; `error_in_float64` is the error of copies in float64, None where the model
    does not run in it.
    """

    error: float
    absolute: float
    error_in_float64: float | None

    def __str__(self) -> str:
        exact = "" if self.error_in_float64 is None else f"{self.error_in_float64:.1e} in float64, "
        return (
            f"Same function: error {exact}{self.error:.1e} in the model's dtype "
            f"(largest difference {self.absolute:.1e})."
        )


def prove_same_function(
    original: nn.Module,
    changed: nn.Module,
    example: Any,
    *,
    change: Callable[[nn.Module], nn.Module] | None = None,
    tolerance: float | None = None,
) -> Proof:
    """Return how far `changed` is from `original` on `example`, in eval mode.

    Copies of both run from the same state of the random generators on copies of the example, in
    their own dtype and in float64. `change`, such as the plan's `apply`, makes the changed model
    in float64 from the original in float64, so that its values are not those that were rounded to
    the dtype of the model; without it `changed` is converted. `tolerance` bounds the error in
    their own dtype (by default 1e-4 in float32 and 1e-2 where any part computes in half
    precision); that in float64 is at most 1e-10, where all of the model computes in it.

    Raises SurgeryError over either, naming the layer where they part, and where the changed model
    fails or the original returns nothing that can be compared.

    >>> model = nn.Linear(2, 2)
    >>> print(prove_same_function(model, duplicate(model), torch.ones(1, 2)))
    Same function: error 0.0e+00 in float64, 0.0e+00 in the model's dtype (largest difference \
0.0e+00).
    """
    dtypes, own = _compare(original, changed, example)
    exact = _compare_in_float64(original, changed, example, change)
    bound = max(map(_default_tolerance, dtypes), default=EXACT) if tolerance is None else tolerance
    if not own.error <= bound:
        raise SurgeryError(_broken(original, changed, example, own, bound))
    return Proof(own.error, own.absolute, exact)


def _compare(
    original: nn.Module, changed: nn.Module, example: Any
) -> tuple[frozenset[torch.dtype], Distance]:
    """Return the dtypes in which the two compute, and how far they are apart."""
    before = run(original, example)
    if not before.outputs:
        raise SurgeryError(
            f"the model ({type(original).__name__}) returns no numbers on the example, so nothing "
            f"shows that it computes the same afterwards: return tensors"
        )
    after = _run_changed(changed, example)
    return before.dtypes | after.dtypes, distance(before.outputs, after.outputs)


def _run_changed(changed: nn.Module, example: Any) -> Outcome:
    try:
        return run(changed, example)
    except Exception as error:
        raise SurgeryError(
            f"the changed model fails where the original does not: {type(error).__name__}: "
            f"{error}; leave layers out by `where`"
        ) from error


def _compare_in_float64(
    original: nn.Module,
    changed: nn.Module,
    example: Any,
    change: Callable[[nn.Module], nn.Module] | None,
) -> float | None:
    """Return the error of copies in float64, None where not all of the model computes in it."""
    example = replace_tensors(example, lambda t: t.double() if t.is_floating_point() else t)
    try:
        wide = duplicate(original).double()
        other = duplicate(changed).double() if change is None else change(wide)
        dtypes, found = _compare(wide, other, example)
    except Exception:  # noqa: BLE001  a dtype written into the model, or a device without float64
        return None
    if found.error <= EXACT:
        return found.error
    if not dtypes <= _WIDEST:  # rounded to another dtype on the way
        return None
    raise SurgeryError(_broken(wide, other, example, found, EXACT))


def _default_tolerance(dtype: torch.dtype) -> float:
    return _TOLERANCES.get(dtype, _TOLERANCE_IN_HALF_PRECISION)


def _broken(
    original: nn.Module, changed: nn.Module, example: Any, found: Distance, bound: float
) -> str:
    layer = parting_layer(original, changed, example, bound)
    place = f"from layer '{layer}' on" if layer else "in its output"
    exact = bound == EXACT
    return (
        f"the changed model does not compute the same: {place} the error max|a − b| / max|a| is "
        f"{found.error:.2g}{' in float64' if exact else ''}, and at most {bound:.2g} is allowed; "
        f"leave the layer out by `where`{'' if exact else ', or allow more by `tolerance`'}"
    )
