"""Mini-batches as Keras users have them, turned into what a model is called with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import torch

from bnkit.batches import NoBatchesError, refuse_iterator, why_none

__all__ = ["inputs_in", "is_array", "pairs_in", "refuse_iterator"]

Pair = tuple[Any, Any, Any]  # inputs, targets, and the weights of the samples or None


def inputs_in(model: Any, batches: Any) -> Iterator[Any]:
    """Yield what `model` is called with for each mini-batch.

    `batches` is one mini-batch (an array, a dict of inputs, or a tuple (x, y) or (x, y, weights)),
    or any iterable of such: a list, a keras.utils.PyDataset, a tf.data.Dataset, a DataLoader. A
    list of arrays is several mini-batches for a model of one input; for one of several inputs it is
    one mini-batch, an array for each input.

    Raises TypeError for what is none of these, ValueError for a list of arrays that can be neither,
    NoBatchesError, which is a ValueError, where there is no mini-batch.

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((3,))])
    >>> x, y = np.zeros((2, 3)), np.zeros(2)
    >>> [inputs.shape for inputs in inputs_in(model, [(x, y), x])]
    [(2, 3), (2, 3)]
    """
    found = False
    for batch in _each(model, batches):
        found = True
        yield batch[0] if isinstance(batch, tuple) else batch
    if not found:
        raise NoBatchesError(why_none(batches))


def pairs_in(
    data: Any, batch_size: int, *, order: np.random.Generator | None = None
) -> Iterator[Pair]:
    """Yield the inputs, targets and weights of each mini-batch of one pass over `data`, in NumPy.

    `data` is (x, y) or (x, y, weights) as `fit` takes them, cut into mini-batches of `batch_size`,
    in an order that is drawn from `order` where that is given; or a PyDataset, a tf.data.Dataset, a
    DataLoader or another iterable of such mini-batches.

    Raises TypeError for what is none of these, ValueError for arrays of several lengths.

    >>> x, y = np.arange(5.0)[:, None], np.arange(5)
    >>> [targets.tolist() for _, targets, _ in pairs_in((x, y), 2)]
    [[0, 1], [2, 3], [4]]
    """
    if isinstance(data, tuple) and not (data and isinstance(data[0], tuple)):
        yield from _cut(_pair(data), batch_size, order)
    elif isinstance(data, keras.utils.PyDataset):
        yield from (_pair(data[number]) for number in range(data.num_batches))
        data.on_epoch_end()
    elif (
        is_array(data) or isinstance(data, Mapping | str | bytes) or not isinstance(data, Iterable)
    ):
        raise _no_pair(data)
    else:
        yield from map(_pair, data)


def _pair(batch: Any) -> Pair:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise _no_pair(batch)
    x, y, weights = (*keras.tree.map_structure(_in_numpy, tuple(batch)), None)[:3]
    return x, y, weights


def _no_pair(found: Any) -> TypeError:
    length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    return TypeError(
        f"`data` holds a {type(found).__name__}{length} for (inputs, targets): give arrays (x, y) "
        f"or (x, y, weights) as `fit` takes them, or an iterable of such mini-batches"
    )


def _in_numpy(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values) if is_array(values) else values


def _cut(data: Pair, batch_size: int, order: np.random.Generator | None) -> Iterator[Pair]:
    parts = [part for part in keras.tree.flatten(data) if part is not None]
    if not all(map(is_array, parts)):
        other = next(part for part in parts if not is_array(part))
        raise TypeError(
            f"the arrays of `data` hold a {type(other).__name__}, {other!r:.40}: pass NumPy arrays"
        )
    lengths = {*map(len, parts)}
    if len(lengths) != 1:
        raise ValueError(
            f"the arrays of `data` have {' and '.join(map(str, sorted(lengths))) or 'no'} rows: "
            f"there must be one row of each for every example"
        )
    (rows,) = lengths
    places = np.arange(rows) if order is None else order.permutation(rows)
    for start in range(0, rows, batch_size):
        chosen = places[start : start + batch_size]
        x, y, weights = keras.tree.map_structure(
            lambda part: part[chosen] if is_array(part) else part,  # noqa: B023  called at once
            data,
        )
        yield x, y, weights


def _each(model: Any, batches: Any) -> Iterable[Any]:
    if is_array(batches) or isinstance(batches, Mapping | tuple):
        return [batches]
    if isinstance(batches, keras.utils.PyDataset):
        return (batches[number] for number in range(batches.num_batches))
    if isinstance(batches, list) and batches and all(map(is_array, batches)):
        return _arrays(model, batches)
    if isinstance(batches, str | bytes) or not isinstance(batches, Iterable):
        raise TypeError(
            f"`batches` is a {type(batches).__name__}: pass an array, (x, y), a dict of inputs, or "
            f"an iterable of such mini-batches"
        )
    # Loaders that make lists, as DataLoader does, mean the same by them as by tuples.
    return (tuple(batch) if isinstance(batch, list) else batch for batch in batches)


def _arrays(model: Any, arrays: Sequence[Any]) -> Iterable[Any]:
    inputs = len(model.inputs)
    if inputs == 1:
        return arrays
    if len(arrays) == inputs:
        return [list(arrays)]
    raise ValueError(
        f"`batches` is a list of {len(arrays)} arrays, and the model has {inputs} inputs: pass "
        f"each mini-batch as a tuple (inputs, targets), or a list of one array for each input"
    )


def is_array(value: Any) -> bool:
    """Return whether a value is an array or tensor of any library.

    >>> import numpy as np
    >>> is_array(np.zeros(2)), is_array([0.0])
    (True, False)
    """
    return hasattr(value, "shape") and hasattr(value, "dtype")
