"""Mini-batches as Keras users have them, turned into what a model is called with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from bnkit.batches import NoBatchesError, refuse_iterator, why_none

__all__ = ["inputs_in", "is_array", "refuse_iterator"]


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
