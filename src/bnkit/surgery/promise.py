"""`prove_same_function`: the promise that a changed model computes the same, checked by running."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import as_call, duplicate
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.observation import evaluating, preserved_random_state, watching

EXACT = 1e-10  # what rounding in float64 may leave of a promise
_TOLERANCES = {torch.float64: EXACT, torch.float32: 1e-4}
_TOLERANCE_IN_HALF_PRECISION = 1e-2


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
    original: nn.Module, changed: nn.Module, example: Any, *, tolerance: float | None = None
) -> Proof:
    """Return how far `changed` is from `original` on `example`, in eval mode.

    Both run from the same state of the random generators, on copies of the example, in their own
    dtype and, on copies, in float64; neither is changed. `tolerance` bounds the error in their own
    dtype (by default 1e-4 in float32, 1e-2 in half precision); that in float64 is at most 1e-10.
    Raises SurgeryError over either, naming the first layer where they part.

    >>> layer = nn.Linear(2, 2)
    >>> prove_same_function(layer, layer, torch.ones(1, 2)).error
    0.0
    """
    own = _compare(original, changed, example)
    wide = _compare_in_float64(original, changed, example)
    if wide is not None and not wide.error <= EXACT:
        raise SurgeryError(_broken("in float64", wide, EXACT))
    bound = _default_tolerance(own.dtype) if tolerance is None else tolerance
    if not own.error <= bound:
        raise SurgeryError(_broken(f"in {own.dtype}", own, bound))
    return Proof(own.error, own.absolute, None if wide is None else wide.error)


@dataclass(frozen=True)
class _Difference:
    error: float
    absolute: float
    dtype: torch.dtype
    first: str  # the first layer where they part


def _compare(original: nn.Module, changed: nn.Module, example: Any) -> _Difference:
    before, after = _run(original, example), _run(changed, example)
    pairs = list(zip(before[""], after[""], strict=True))
    worst = max((_difference(a, b) for a, b in pairs), default=(0.0, 0.0))
    dtype = next((a.dtype for a, _ in pairs if a.is_floating_point()), torch.float32)
    return _Difference(*worst, dtype, _first_parting(before, after, worst[0]))


def _compare_in_float64(
    original: nn.Module, changed: nn.Module, example: Any
) -> _Difference | None:
    wide = replace_tensors(example, lambda t: t.double() if t.is_floating_point() else t)
    try:
        copies = duplicate(original).double(), duplicate(changed).double()
        return _compare(*copies, wide)
    except (RuntimeError, TypeError):  # a dtype written into the model, or a device without it
        return None


def _run(model: nn.Module, example: Any) -> dict[str, list[Tensor]]:
    """Return the output tensors of every module by its path, those of the model at ""."""
    seen: dict[str, list[Tensor]] = {}

    def keep(path: str, *call: Any) -> None:
        seen[path] = [t.detach().clone() for t in tensors_in(call[-1])]

    args, kwargs = replace_tensors(as_call(example), lambda t: t.detach().clone())
    with torch.no_grad(), preserved_random_state(), evaluating(model), watching(model, after=keep):
        model(*args, **kwargs)
    return seen


def _difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    if a.shape != b.shape:
        return math.inf, math.inf
    if not a.numel() or torch.equal(a, b):
        return 0.0, 0.0
    # Where both are NaN, or the same infinity, they are equal.
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a.double() - b.double()).abs()).max().item()
    size = a[a.isfinite()].double().abs().max().item() if a.isfinite().any() else 0.0
    if math.isnan(gap):
        return math.inf, math.inf
    return (gap / size if size else math.inf), gap


def _first_parting(
    before: dict[str, list[Tensor]], after: dict[str, list[Tensor]], worst: float
) -> str:
    """Return the first layer, in the order in which they end, with a good part of the error."""
    for path, outputs in before.items():
        others = after.get(path, [])
        if len(others) == len(outputs):
            errors = [_difference(a, b)[0] for a, b in zip(outputs, others, strict=True)]
            if path and max(errors, default=0.0) > worst / 10:
                return path
    return ""


def _default_tolerance(dtype: torch.dtype) -> float:
    return _TOLERANCES.get(dtype, _TOLERANCE_IN_HALF_PRECISION)


def _broken(where: str, difference: _Difference, bound: float) -> str:
    place = f"first in layer '{difference.first}'" if difference.first else "in its output"
    return (
        f"the changed model does not compute the same: {place} the error max|a - b| / max|a| "
        f"{where} is {difference.error:.2g}, and at most {bound:.2g} is allowed; leave the layer "
        f"out by `where`, or allow more by `tolerance`"
    )
