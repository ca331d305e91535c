"""A few rows of an example on which a model is run again, and whether they stand for all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bnkit.dataflow.tensors import replace_tensors, tensors_in, version_of
from bnkit.surgery.distance import Outcome, distance, errors_of_rows

SHARE = 8  # one row in so many; in float64 a row takes two to three times the time


def furthest_rows(example: Any, before: Outcome, after: Outcome) -> Tensor | None:
    """Return the eighth of the rows in which two outcomes on `example` are furthest apart.

    They are indices of the first axis, ascending. None where there are fewer than eight rows, and
    where not all tensors of the example and all outputs have as many.

    >>> import torch
    >>> before, after = torch.zeros(9), torch.zeros(9).index_fill(0, torch.tensor(5), 0.1)
    >>> none = frozenset()
    >>> furthest_rows(torch.zeros(9, 2), Outcome([before], none), Outcome([after], none))
    tensor([5])
    """
    tensors = [*tensors_in(example), *before.outputs, *after.outputs]
    counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    share = min(counts, default=0) // SHARE
    if len(counts) > 1 or not share:
        return None
    errors = errors_of_rows(before.outputs, after.outputs)
    return errors.argsort(descending=True, stable=True)[:share].sort().values


def rows_of(example: Any, rows: Tensor) -> Any:
    """Return `example` with only these rows of its tensors.

    >>> import torch
    >>> rows_of({"ids": torch.tensor([3, 4, 5])}, torch.tensor([0, 2]))
    {'ids': tensor([3, 5])}
    """
    return replace_tensors(example, lambda t: t.detach()[rows.to(t.device)])


def stands_for(part: Outcome, whole: Outcome, rows: Tensor, *, bound: float) -> bool:
    """Return whether the run on these rows did what the run on all of the example did with them.

    That is so where the same layers ran in the same order, and gave these rows of the outputs, to
    an error of `bound`. It is not where rows meet, where the batch size decides, where a layer runs
    for some rows only, and where random numbers are drawn.

    >>> import torch
    >>> whole = Outcome([torch.tensor([1.0, 2.0])], frozenset(), ("0",))
    >>> part = Outcome([torch.tensor([2.0])], frozenset(), ("0",))
    >>> stands_for(part, whole, torch.tensor([1]), bound=1e-6)
    True
    """
    expected = [output[rows] for output in whole.outputs]
    return part.layers == whole.layers and distance(expected, part.outputs).error <= bound


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Raise RuntimeError where the block has written into the state of `model`, or replaced it.

    >>> layer = nn.BatchNorm1d(2)
    >>> with unwritten(layer):
    ...     layer.eps = 1e-3
    """
    state = _state_of(model)
    yield
    if _state_of(model) != state:
        raise RuntimeError("the model changes when it runs, so another run begins elsewhere")


def _state_of(model: nn.Module) -> list[tuple[int, int]]:
    return [(id(t), version_of(t)) for t in (*model.parameters(), *model.buffers())]
