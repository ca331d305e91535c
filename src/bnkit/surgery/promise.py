"""`prove_same_function`: the promise that a changed model computes the same, checked by running."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnkit.dataflow import duplicate
from bnkit.dataflow.tensors import replace_tensors
from bnkit.surgery.distance import Distance, Outcome, distance, parting_layer, run, run_itself
from bnkit.surgery.rows import furthest_rows, rows_of, stands_for, unwritten

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


@dataclass(frozen=True)
class _Claim:
    """That a changed model computes the same as `original` on `example`.

    `change` makes it of the original, and `change_in_float64` of the original in float64, which
    that may use up.
    """

    original: nn.Module
    example: Any
    change: Callable[[nn.Module], nn.Module]
    change_in_float64: Callable[[nn.Module], nn.Module]


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

    Of an example of eight rows or more the float64 run takes an eighth, those in which the two are
    furthest apart in their own dtype, where `stands_for` says that they stand for the whole.

    Raises SurgeryError over either, naming the layer where they part, and where the changed model
    fails or the original returns nothing that can be compared.

    >>> model = nn.Linear(2, 2)
    >>> print(prove_same_function(model, duplicate(model), torch.ones(1, 2)))
    Same function: error 0.0e+00 in float64, 0.0e+00 in the model's dtype (largest difference \
0.0e+00).
    """
    exactly = change or (lambda _: duplicate(changed).double())
    claim = _Claim(original, example, lambda _: duplicate(changed), exactly)
    return _prove(claim, run(original, example), tolerance)


def prove_change(
    model: nn.Module,
    change: Callable[[nn.Module], object],
    example: Any,
    *,
    before: Outcome | None = None,
    tolerance: float | None = None,
) -> Proof:
    """Return how far a copy of `model` that `change` changes is from it, as `prove_same_function`.

    `before` is what `model` gave on `example` when it was traced, which spares one run.

    >>> prove_change(nn.Linear(2, 2), lambda model: model.train(), torch.ones(1, 2)).error
    0.0
    """

    def changed(model: nn.Module) -> nn.Module:
        made = change(model)
        return made if isinstance(made, nn.Module) else model

    before = run(model, example) if before is None else before
    claim = _Claim(model, example, lambda original: changed(duplicate(original)), changed)
    return _prove(claim, before, tolerance)


def _prove(claim: _Claim, before: Outcome, tolerance: float | None) -> Proof:
    _refuse_silence(claim.original, before)
    after = _run_changed(claim.change(claim.original), claim.example)
    own = distance(before.outputs, after.outputs)
    exact = _error_on_rows(claim, before, after)
    if exact is None:
        exact = _error_on_all(claim)
    bound = _default_tolerance(before.dtypes | after.dtypes) if tolerance is None else tolerance
    if not own.error <= bound:
        changed = claim.change(claim.original)
        raise SurgeryError(_broken(claim.original, changed, claim.example, own, bound))
    return Proof(own.error, own.absolute, exact)


def _refuse_silence(original: nn.Module, before: Outcome) -> None:
    if not before.outputs:
        raise SurgeryError(
            f"the model ({type(original).__name__}) returns no numbers on the example, so nothing "
            f"shows that it computes the same afterwards: return tensors"
        )


def _run_changed(changed: nn.Module, example: Any) -> Outcome:
    try:
        return run_itself(changed, example)
    except Exception as error:
        raise SurgeryError(
            f"the changed model fails where the original does not: {type(error).__name__}: "
            f"{error}; leave layers out by `where`"
        ) from error


def _error_on_rows(claim: _Claim, before: Outcome, after: Outcome) -> float | None:
    """Return the error in float64 on a few rows that stand for all and keep the promise, or None.

    None decides nothing: then all of the example does.
    """
    try:
        rows = furthest_rows(claim.example, before, after)
        if rows is None:
            return None
        part = _double(rows_of(claim.example, rows))
        wide = duplicate(claim.original).double()
        with unwritten(wide):
            first = run_itself(wide, part)
        second = run_itself(claim.change_in_float64(wide), part)
    except Exception:  # noqa: BLE001  a model of fixed batches, one that does not run in float64, …
        return None
    bound = _default_tolerance(before.dtypes | after.dtypes)
    pairs = ((first, before), (second, after))
    stand = all(stands_for(part, whole, rows, bound=bound) for part, whole in pairs)
    error = distance(first.outputs, second.outputs).error
    return error if stand and error <= EXACT else None


def _error_on_all(claim: _Claim) -> float | None:
    """Return the error of copies in float64, None where not all of the model computes in it."""
    example = _double(claim.example)
    try:
        wide = duplicate(claim.original).double()
        other = claim.change_in_float64(duplicate(wide))
        before, after = run(wide, example), run(other, example)
        found = distance(before.outputs, after.outputs)
        _refuse_silence(wide, before)
    except Exception:  # noqa: BLE001  a dtype written into the model, or a device without float64
        return None
    if found.error <= EXACT:
        return found.error
    if not before.dtypes | after.dtypes <= _WIDEST:  # rounded to another dtype on the way
        return None
    raise SurgeryError(_broken(wide, other, example, found, EXACT))


def _double(example: Any) -> Any:
    return replace_tensors(example, lambda t: t.double() if t.is_floating_point() else t)


def _default_tolerance(dtypes: frozenset[torch.dtype]) -> float:
    found = [_TOLERANCES.get(dtype, _TOLERANCE_IN_HALF_PRECISION) for dtype in dtypes]
    return max(found, default=EXACT)


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
