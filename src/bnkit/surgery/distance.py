"""How far apart the outputs of two models are on one example, and in which layer they part."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.dataflow import as_call, duplicate
from bnkit.dataflow.precisions import Precisions
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.internals import leaves_of
from bnkit.observation import Mode, evaluating, on_the_side, watching

_NUMBERS = (bool, int, float, complex, np.number, np.ndarray)


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

    `layers` are the paths of the modules inside of it, in the order in which they ended.
    """

    outputs: Sequence[Tensor]
    dtypes: frozenset[torch.dtype]
    layers: tuple[str, ...] = ()


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
    with (
        on_the_side(model, mode=mode),
        witnessing(model, watch=watch) as witness,
        Precisions() as precisions,
    ):
        model(*args, **kwargs)
    return witness.outcome(precisions.seen)


@dataclass
class Witness:
    """Sees what a model gives while it runs: the paths of the `layers`, and what came last."""

    layers: list[str] = field(default_factory=list)
    result: Any = None
    of_last_layer: Any = None

    def keep(self, path: str, output: Any) -> None:
        """Note that the module at this path gave `output`."""
        if path:
            self.layers.append(path)
            self.of_last_layer = output
        else:
            self.result = output

    def outcome(self, dtypes: Iterable[torch.dtype]) -> Outcome:
        """Return what the run gave, in which these dtypes were seen."""
        outputs = _numbers_in(self.result) or _numbers_in(self.of_last_layer)
        return Outcome(outputs, frozenset(dtypes), tuple(self.layers))


@contextmanager
def witnessing(
    model: nn.Module, *, watch: Callable[..., object] | None = None
) -> Iterator[Witness]:
    """Give a witness of the run of `model` in the block; `watch` is that of `run`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> with witnessing(model) as witness:
    ...     _ = model(torch.ones(1, 2))
    >>> witness.layers
    ['0', '1']
    """
    witness = Witness()

    def keep(path: str, *call: Any) -> None:
        witness.keep(path, call[-1])
        if watch is not None:
            watch(path, *call)

    with watching(model, after=keep):
        yield witness


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


def errors_of_rows(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Return the error of each row, that is index of the first axis, the largest over all tensors.

    All have as many rows, and the shapes on both sides are the same. A row in which only one side
    is NaN is infinitely far.

    >>> errors_of_rows([torch.tensor([4.0, 0.0])], [torch.tensor([4.0, 1.0])])
    tensor([0.0000, 0.2500], dtype=torch.float64)
    """
    pairs = [_gaps(a, b) for a, b in zip(before, after, strict=True)]
    rows = [
        (gaps / size).flatten(1).amax(1) if gaps.dim() > 1 else gaps / size for gaps, size in pairs
    ]
    return torch.stack(rows).amax(0).nan_to_num(math.inf, math.inf)


def parting_layer(original: nn.Module, changed: nn.Module, example: Any, bound: float) -> str:
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
    """Return by path what each module inside of the model made, in the order in which they end."""
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
