"""`verify`: a changed model computes the same as the original, checked by running both.

A proof runs copies on one example in eval mode, in the model's dtype and in float64. What follows
here in turn: the proof, the samples on which it runs in float64, what one run gives, and distances.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.dataflow import Dataflow, as_call, duplicate, observe
from bnkit.dataflow.copying import state_of
from bnkit.dataflow.recording import Precisions
from bnkit.dataflow.tensors import tensors_in
from bnkit.internals import leaves_of, replace_tensors
from bnkit.observation import (
    Before,
    Mode,
    NotEnoughMemoryError,
    evaluating,
    memory_explained,
    on_the_side,
    watching,
)

EXACT = 1e-10  # what rounding in float64 may leave of a difference
_TOLERANCES = {
    torch.float64: EXACT,
    torch.complex128: EXACT,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
}
_TOLERANCE_IN_HALF_PRECISION = 1e-2
_OF_ROUNDING = 8  # so many times what one unit in the last place does is rounding, too
_WIDEST = frozenset([torch.float64, torch.complex128])
_SHARE = 8  # one sample in so many: in float64 a sample takes two to five times the time

_NUMBERS = (bool, int, float, complex, np.number, np.ndarray)


class SurgeryError(ValueError):
    """A change to a model is impossible, or changes what it computes; the message says where."""


@dataclass(frozen=True)
class Proof:
    """How far the outputs of a changed model are from the original's, on one example in eval mode.

    `error` is max|a − b| / max|a| and `absolute` max|a − b|, the largest over all outputs, in the
    dtype of the model; `error_in_float64` is the error of copies in float64. Where these could not
    be compared, it is None and `why_not_in_float64` says why.
    """

    error: float
    absolute: float
    error_in_float64: float | None
    why_not_in_float64: str | None = None

    def __str__(self) -> str:
        exact, only, reason = "", "", ""
        if self.error_in_float64 is not None:
            exact = f"{self.error_in_float64:.1e} in float64, "
        elif self.why_not_in_float64:
            only, reason = " only", f" Not checked in float64: {self.why_not_in_float64}."
        return (
            f"Same function: error {exact}{self.error:.1e} in the model's dtype{only} "
            f"(largest difference {self.absolute:.1e}).{reason}"
        )


@dataclass(frozen=True)
class Distance:
    """`error` is max|a − b| / max|a| and `absolute` max|a − b|, the largest over all outputs.

    Where an output a is zero everywhere, its error is max|a − b|. Both are infinite where the
    outputs differ in number or in shape.
    """

    error: float
    absolute: float


@dataclass(frozen=True)
class Outcome:
    """What a model gave: its output tensors, on the CPU, and the dtypes that it computed in.

    `layers` are the paths of the modules inside it, in the order in which they ended.
    """

    outputs: Sequence[Tensor]
    dtypes: frozenset[torch.dtype]
    layers: tuple[str, ...] = ()


def verify(
    model: nn.Module,
    change: Callable[[nn.Module], object],
    example: Any,
    *,
    before: Outcome | None = None,
    tolerance: float | None = None,
) -> Proof:
    """Return how far a copy of `model` that `change` changes is from it on `example`, in eval mode.

    `change`, such as that of a plan, changes a model in place, or returns what takes its place.
    Original and changed model run from the same state of the random generators on copies of the
    example, in the model's dtype and in float64; there the change is made again, so that its values
    are not those that were rounded to the dtype of the model. `tolerance` bounds the error in the
    model's dtype (by default 1e-4 in float32 and 1e-2 where anything is computed in half
    precision; of an exact change of a float32 model also eight times what one unit in the last
    place of input and weights does to the output); that in float64 is at most 1e-10, where all of
    the model computes in it. `before` is what `model` gave on `example` when it was traced, which
    spares one run.

    The float64 run takes the samples of `furthest_samples` where they stand for the whole, and all
    of them elsewhere. At any time there is one copy of the model. Raises SurgeryError over either
    bound, naming the layer where the two first differ, and where the changed model fails or the
    original returns nothing that can be compared; NotEnoughMemoryError where memory is too short to
    run both in the model's dtype.

    >>> print(verify(nn.Linear(2, 2), lambda model: model.eval(), torch.ones(1, 2)))
    Same function: error 0.0e+00 in float64, 0.0e+00 in the model's dtype (largest difference \
0.0e+00).
    """
    state = state_of(model)
    before = run(model, example) if before is None else before
    _refuse_silence(model, before)
    claim = _Claim(model, example, change)
    after = _run_changed(claim.changed(), example)
    own = distance(before.outputs, after.outputs)
    exact, why = _error_on_samples(claim, before, after), None
    if exact is None:
        exact, why = _error_on_all(claim)
    bound = _default_tolerance(before.dtypes | after.dtypes) if tolerance is None else tolerance
    narrow = bound == _TOLERANCES[torch.float32]
    if tolerance is None and narrow and exact is not None and bound < own.error < math.inf:
        # The change is exact; a deep network may round further apart than most.
        bound = max(bound, _OF_ROUNDING * _rounding(model, example, before))
    if state_of(model) != state:
        raise SurgeryError(
            f"a copy of the model ({type(model).__name__}) writes into the original when it runs: "
            f"something in it is shared by both, so nothing is proven; look for functions and "
            f"objects set on its layers"
        )
    if not own.error <= bound:
        raise SurgeryError(_broken(model, claim.changed(), example, own, bound))
    return Proof(own.error, own.absolute, exact, why)


@dataclass(frozen=True)
class _Claim:
    """That `original` computes the same on `example` after the change."""

    original: nn.Module
    example: Any
    change: Callable[[nn.Module], object]

    def changed(self) -> nn.Module:
        return self.after(duplicate(self.original))

    def after(self, model: nn.Module) -> nn.Module:
        made = self.change(model)
        return made if isinstance(made, nn.Module) else model

    def wide(self) -> nn.Module:
        return duplicate(self.original).double()


def _refuse_silence(original: nn.Module, before: Outcome) -> None:
    if not before.outputs:
        raise SurgeryError(
            f"the model ({type(original).__name__}) returns no numbers on the example, so nothing "
            f"shows that it computes the same afterwards: return tensors"
        )


def _run_changed(changed: nn.Module, example: Any) -> Outcome:
    try:
        return run_itself(changed, example)
    except NotEnoughMemoryError:
        raise
    except Exception as error:
        raise SurgeryError(
            f"the changed model fails where the original does not: {type(error).__name__}: "
            f"{error}; leave layers out by `where`"
        ) from error


def _error_on_samples(claim: _Claim, before: Outcome, after: Outcome) -> float | None:
    """Return the error in float64 on samples that stand for all, None where that is undecided."""
    try:
        samples = furthest_samples(claim.example, before, after)
        if samples is None:
            return None
        part = _double(samples_of(claim.example, samples))
        wide = claim.wide()
        with unwritten(wide):
            first = run_itself(wide, part)
        second = run_itself(claim.after(wide), part)  # uses the copy up, which the run left alone
    except Exception:  # noqa: BLE001  a model of fixed batches, one that does not run in float64, …
        return None
    bound = _default_tolerance(before.dtypes | after.dtypes)
    pairs = ((first, before), (second, after))
    stand = all(stands_for(part, whole, samples, bound=bound) for part, whole in pairs)
    error = distance(first.outputs, second.outputs).error
    return error if stand and error <= EXACT else None


def _error_on_all(claim: _Claim) -> tuple[float | None, str | None]:
    """Return the error of copies in float64; or None, and why there is none."""
    try:
        with memory_explained():
            example = _double(claim.example)
            # One copy after the other, so that there is one at a time.
            before = run_itself(claim.wide(), example)
            after = run_itself(claim.after(claim.wide()), example)
    except NotEnoughMemoryError:
        return None, "memory is too short for it, and a smaller example needs less"
    except Exception as error:  # noqa: BLE001  a dtype written into the model, …
        reason = str(error).partition("\n")[0]
        return None, f"the model fails in it ({type(error).__name__}: {reason})"
    if not before.outputs:
        return None, "the model returns no numbers in it"
    found = distance(before.outputs, after.outputs)
    if found.error <= EXACT:
        return found.error, None
    narrow = (before.dtypes | after.dtypes) - _WIDEST
    if narrow:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
        return None, f"on the way the model rounds to {names}"
    wide = claim.wide()
    raise SurgeryError(_broken(wide, claim.after(claim.wide()), example, found, EXACT))


def _rounding(model: nn.Module, example: Any, before: Outcome) -> float:
    """Return how far the output moves with input and weights one unit in the last place away.

    Up or down, by chance: so far apart are two ways of rounding what the network computes.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype is torch.float64:
            return tensor.detach()
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return torch.nextafter(tensor.detach(), signs * math.inf)

    working = duplicate(model)
    with torch.inference_mode(mode=False), torch.no_grad():
        for parameter in working.parameters():
            parameter.copy_(moved(parameter))
    after = run_itself(working, replace_tensors(example, moved))
    return distance(before.outputs, after.outputs).error


def _double(example: Any) -> Any:
    return replace_tensors(example, lambda t: t.double() if t.is_floating_point() else t)


def _default_tolerance(dtypes: frozenset[torch.dtype]) -> float:
    found = [_TOLERANCES.get(dtype, _TOLERANCE_IN_HALF_PRECISION) for dtype in dtypes]
    return max(found, default=EXACT)


def _broken(
    original: nn.Module, changed: nn.Module, example: Any, found: Distance, bound: float
) -> str:
    layer = ""
    with suppress(NotEnoughMemoryError):  # for the outputs of all layers
        layer = first_difference(original, changed, example, bound)
    place = f"from layer '{layer}' on" if layer else "in its output"
    exact = bound == EXACT
    return (
        f"the changed model does not compute the same: {place} the error max|a − b| / max|a| is "
        f"{found.error:.2g}{' in float64' if exact else ''}, and at most {bound:.2g} is allowed; "
        f"leave the layer out by `where`{'' if exact else ', or allow more by `tolerance`'}"
    )


# --- a few samples in place of all


def furthest_samples(example: Any, before: Outcome, after: Outcome) -> Tensor | None:
    """Return the eighth of the samples in which two outcomes on `example` are furthest apart.

    At least one; they are indices of the first axis, ascending. None where there is one sample, and
    where not all tensors of the example and all outputs have as many.

    >>> import torch
    >>> before, after = torch.zeros(9), torch.zeros(9).index_fill(0, torch.tensor(5), 0.1)
    >>> none = frozenset()
    >>> furthest_samples(torch.zeros(9, 2), Outcome([before], none), Outcome([after], none))
    tensor([5])
    """
    tensors = [*tensors_in(example), *before.outputs, *after.outputs]
    counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    samples = min(counts, default=0)
    if len(counts) > 1 or samples < 2:
        return None
    errors = errors_of_samples(before.outputs, after.outputs)
    return errors.argsort(descending=True, stable=True)[: max(1, samples // _SHARE)].sort().values


def samples_of(example: Any, samples: Tensor) -> Any:
    """Return `example` with only these samples of its tensors.

    >>> import torch
    >>> samples_of({"ids": torch.tensor([3, 4, 5])}, torch.tensor([0, 2]))
    {'ids': tensor([3, 5])}
    """
    return replace_tensors(example, lambda t: t.detach()[samples.to(t.device)])


def stands_for(part: Outcome, whole: Outcome, samples: Tensor, *, bound: float) -> bool:
    """Return whether the run on these samples did what the run on all of the example did with them.

    That is so where the same layers ran in the same order, and gave these samples of the outputs,
    to an error of `bound`. It is not where samples meet, where the batch size decides, where a
    layer runs for some samples only, and where random numbers are drawn.

    >>> import torch
    >>> whole = Outcome([torch.tensor([1.0, 2.0])], frozenset(), ("0",))
    >>> part = Outcome([torch.tensor([2.0])], frozenset(), ("0",))
    >>> stands_for(part, whole, torch.tensor([1]), bound=1e-6)
    True
    """
    expected = [output[samples] for output in whole.outputs]
    return part.layers == whole.layers and distance(expected, part.outputs).error <= bound


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Raise RuntimeError where the block has written into the state of `model`, or replaced it.

    >>> layer = nn.BatchNorm1d(2)
    >>> with unwritten(layer):
    ...     layer.eps = 1e-3
    """
    state = state_of(model)
    yield
    if state_of(model) != state:
        raise RuntimeError("the model changes when it runs, so another run begins elsewhere")


# --- one run, and how far two are apart


def run(
    model: nn.Module,
    example: Any,
    *,
    mode: Mode = evaluating,
    watch: Callable[..., object] | None = None,
) -> Outcome:
    """Return what a copy of `model` gives on a copy of `example`, without gradients, in `mode`.

    The outputs are all tensors, arrays and numbers that it returns, and where none can be found
    those of the last layer that ran. `watch` gets what `watching` gives to its `after`. The state
    of the random generators is given back.

    >>> run(nn.Identity(), torch.ones(2)).outputs
    [tensor([1., 1.])]
    """
    return run_itself(duplicate(model), example, mode=mode, watch=watch)


def run_itself(
    model: nn.Module,
    example: Any,
    *,
    mode: Mode = evaluating,
    watch: Callable[..., object] | None = None,
) -> Outcome:
    """Return what `model` itself gives, run as `run` runs its copy, which may change it.

    >>> run_itself(nn.Identity(), torch.ones(2)).dtypes
    frozenset()
    """
    args, kwargs = replace_tensors(as_call(example), _copied)
    witness = _Witness(watch)
    with (
        on_the_side(model, mode=mode),
        watching(model, after=witness.see),
        Precisions() as precisions,
    ):
        model(*args, **kwargs)
    return witness.outcome(precisions.seen)


def trace_itself(
    model: nn.Module, example: Any, *, before: Before | None = None
) -> tuple[Dataflow, Outcome]:
    """Return the dataflow of `model` itself in eval mode, and what that run gave.

    It is run as `observe` runs it, which calls `before`, and raises what that raises.

    >>> flow, outcome = trace_itself(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))
    >>> len(flow.calls), outcome.layers
    (2, ('0', '1'))
    """
    witness = _Witness()
    flow = observe(model, example, before=before, after=witness.see)
    return flow, witness.outcome(flow.dtypes)


@dataclass
class _Witness:
    """Sees what a model gives while it runs: the paths of the `layers`, and what came last."""

    watch: Callable[..., object] | None = None  # sees each call, too
    layers: list[str] = field(default_factory=list)
    result: Any = None
    of_last_layer: Any = None

    def see(self, path: str, *call: Any) -> None:
        if path:
            self.layers.append(path)
            self.of_last_layer = call[-1]
        else:
            self.result = call[-1]
        if self.watch is not None:
            self.watch(path, *call)

    def outcome(self, dtypes: Iterable[torch.dtype]) -> Outcome:
        """Return what the run gave, in which these dtypes were seen."""
        outputs = _numbers_in(self.result) or _numbers_in(self.of_last_layer)
        return Outcome(outputs, frozenset(dtypes), tuple(self.layers))


def distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> Distance:
    """Return how far the tensors `after` are from those `before`.

    >>> distance([torch.tensor([4.0, 0.0])], [torch.tensor([4.0, 1.0])])
    Distance(error=0.25, absolute=1.0)
    """
    if [t.shape for t in before] != [t.shape for t in after]:
        return Distance(math.inf, math.inf)
    pairs = [_distance(a, b) for a, b in zip(before, after, strict=True)]
    return Distance(
        max((pair.error for pair in pairs), default=0.0),
        max((pair.absolute for pair in pairs), default=0.0),
    )


def errors_of_samples(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Return the error of each sample, an index of the first axis: the largest over all tensors.

    All have as many samples, and the shapes on both sides are the same. A sample in which only one
    side is NaN is infinitely far.

    >>> errors_of_samples([torch.tensor([4.0, 0.0])], [torch.tensor([4.0, 1.0])])
    tensor([0.0000, 0.2500], dtype=torch.float64)
    """
    pairs = [_gaps(a, b) for a, b in zip(before, after, strict=True)]
    samples = [
        (gaps / size).flatten(1).amax(1) if gaps.dim() > 1 else gaps / size for gaps, size in pairs
    ]
    return torch.stack(samples).amax(0).nan_to_num(math.inf, math.inf)


def first_difference(original: nn.Module, changed: nn.Module, example: Any, bound: float) -> str:
    """Return the path of the layer from which on errors are over `bound`, "" if none can be named.

    Layers before it may differ too, where the change is meant to do so: a folded conv does.
    """
    before, after = (_outputs_of_layers(model, example) for model in (original, changed))
    found = ""
    for path in reversed([path for path in before if path in after]):
        if distance(before[path], after[path]).error <= bound:
            break
        found = path
    return found


def _outputs_of_layers(model: nn.Module, example: Any) -> Mapping[str, Sequence[Tensor]]:
    """Return by path what each module inside the model made, in the order in which they end."""
    seen: dict[str, Sequence[Tensor]] = {}

    def keep(path: str, *call: Any) -> None:
        seen.pop(path, None)
        if path:
            seen[path] = _numbers_in(call[-1])

    run(model, example, watch=keep)
    return seen


def _numbers_in(result: Any) -> list[Tensor]:
    leaves = leaves_of(result)[0]
    numbers = [np.asarray(leaf) for leaf in leaves if isinstance(leaf, _NUMBERS)]
    plain = [torch.tensor(array) for array in numbers if array.dtype.kind in "biufc"]
    return [t.detach().cpu().clone() for t in tensors_in(result)] + plain


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _distance(a: Tensor, b: Tensor) -> Distance:
    if not a.numel() or torch.equal(a, b):
        return Distance(0.0, 0.0)
    gaps, size = _gaps(a, b)
    gap = gaps.max().item()
    if math.isnan(gap):
        return Distance(math.inf, math.inf)
    return Distance(gap / size, gap)


def _gaps(a: Tensor, b: Tensor) -> tuple[Tensor, float]:
    """Return |a − b| of each value, and max|a| by which it is divided, or 1 for zeros."""
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    # Where both are NaN, or the same infinity, they are equal.
    same = (a == b) | (a.isnan() & b.isnan())
    size = torch.where(a.isfinite(), a.abs(), 0.0).max().item()
    return torch.where(same, 0.0, (a - b).abs()), size or 1.0
