"""How far apart the outputs of two models are on one example, and in which layer they part."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnkit.dataflow import as_call, duplicate
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.observation import evaluating, preserved_random_state, watching

Mode = Callable[[nn.Module], AbstractContextManager[None]]
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
    """What a model gave: its output tensors, on the CPU, and the dtypes that it computed in."""

    outputs: Sequence[Tensor]
    dtypes: frozenset[torch.dtype]


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
    last: list[Any] = []

    def keep(path: str, *call: Any) -> None:
        if path:
            last[:] = call[-1:]
        if watch is not None:
            watch(path, *call)

    args, kwargs = replace_tensors(as_call(example), _copied)
    copy, precisions = duplicate(model), _Precisions()
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        preserved_random_state(),
        mode(copy),
        watching(copy, after=keep),
        precisions,
    ):
        result = copy(*args, **kwargs)
    return Outcome(_numbers_in(result) or _numbers_in(last), frozenset(precisions.seen))


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


@dataclass(eq=False)
class _Precisions(TorchFunctionMode):
    """Notes the dtypes of all floating-point numbers that torch functions make."""

    seen: set[torch.dtype] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for made in output if isinstance(output, tuple | list) else (output,):
            if isinstance(made, Tensor) and (made.is_floating_point() or made.is_complex()):
                self.seen.add(made.dtype)
        return output


def _numbers_in(result: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(result)  # noqa: SLF001  torch has no public trees yet
    numbers = [np.asarray(leaf) for leaf in leaves if isinstance(leaf, _NUMBERS)]
    plain = [torch.tensor(array) for array in numbers if array.dtype.kind in "biufc"]
    return [t.detach().cpu().clone() for t in tensors_in(result)] + plain


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _distance(a: Tensor, b: Tensor) -> Distance:
    if not a.numel() or torch.equal(a, b):
        return Distance(0.0, 0.0)
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    # Where both are NaN, or the same infinity, they are equal.
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).max().item()
    size = torch.where(a.isfinite(), a.abs(), 0.0).max().item()
    if math.isnan(gap):
        return Distance(math.inf, math.inf)
    return Distance(gap / (size or 1.0), gap)
