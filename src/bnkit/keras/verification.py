"""That a changed Keras model computes the same: each pair in float64, the whole in its own dtype.

Keras computes in float32 whatever its policy says, but on TensorFlow, so a whole model cannot be
run in float64. Each layer that takes a batch norm in is therefore proven by itself, by torch's
functions in float64, on what it gets from the example; and how far the whole model may move is
measured by how far it moves when each of its inputs changes by one unit in the last place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor

from bnkit.keras.graph import Call, inputs_of, layers_inside
from bnkit.keras.kernels import (
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    Affine,
    Array,
    Arrays,
    array_of,
    features_axis,
)
from bnkit.keras.observation import Instead, calling_instead, infer
from bnkit.surgery import SurgeryError

EXACT = 1e-10  # what rounding in float64 may leave of a pair
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}
ULPS = 10  # a changed model may move this many times as far as the input's last place moves it


@dataclass(frozen=True)
class Proof:
    """How far the outputs of a changed model are from the original's, on one example.

    `error` is max|a − b| / max|a| and `absolute` max|a − b|, the largest over all outputs, in the
    dtype of the model; `rounding` is the error that one unit in the last place of the inputs makes
    in the original; `error_in_float64` the largest error of a pair of layers in float64, None where
    no layer was changed.
    """

    error: float
    absolute: float
    rounding: float
    error_in_float64: float | None

    def __str__(self) -> str:
        pairs = self.error_in_float64
        exact = "" if pairs is None else f"{pairs:.1e} in float64 (layer by layer), "
        return (
            f"Same function: error {exact}{self.error:.1e} in the model's dtype (largest "
            f"difference {self.absolute:.1e}; one unit in the last place of the inputs makes "
            f"{self.rounding:.1e})."
        )


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer beside a batch norm whose map it takes in, or behind which one is inserted.

    `old` and `new` are its weights before and after; None for an activation, which has none. The
    batch norm stands `before` or `after` it, and is folded, or is `inserted` behind it.
    """

    call: Call
    affine: Affine
    old: Arrays | None
    new: Arrays | None
    norm: Literal["before", "after", "inserted"]
    axis: int  # of the features, from the end


def example_of(model: Any, example: Any) -> Any:
    """Return `example`, or random numbers of the shapes of the model's inputs, four rows.

    Raises ValueError for inputs of unknown size and of integers, whose range is unknown.

    >>> example_of(keras.Sequential([keras.Input((3,)), L.Dense(2)]), None).shape
    (4, 3)
    """
    if example is not None:
        return example
    generator = np.random.default_rng(0)

    def numbers(tensor: Any) -> Array:
        shape = (4, *tensor.shape[1:])
        if None in shape or not keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                f"no example can be made for the input '{tensor.name}' of shape {tensor.shape} and "
                f"dtype {tensor.dtype}: pass `example`, what the model is called with"
            )
        return generator.standard_normal(shape).astype(tensor.dtype)

    return keras.tree.map_structure(numbers, inputs_of(model))


def prove_same_function(
    original: Any, changed: Any, example: Any, pairs: Sequence[Pair], *, tolerance: float | None
) -> Proof:
    """Return how far `changed` is from `original` on `example`, in three runs.

    Each pair is proven in float64 on what its layer gets when the original runs. Raises
    SurgeryError, naming the layer, for a pair whose error is above 1e-10, and for a changed model
    that is too far from the original.
    """
    errors: list[float] = []
    with calling_instead(_proving(pairs, errors)):
        before = _outputs(original, example)
    error, absolute = _distance(before, _outputs(changed, example))
    rounding, _ = _distance(before, _outputs(original, _one_unit_more(example)))
    kinds = {layer.compute_dtype for layer in layers_inside(original)}
    least = max(TOLERANCE.get(kind, 0.0) for kind in kinds)
    bound = max(least, ULPS * rounding) if tolerance is None else tolerance
    if not error <= bound:
        raise SurgeryError(
            f"the changed model does not compute the same: the error max|a − b| / max|a| is "
            f"{error:.2g}, and at most {bound:.2g} is allowed; leave layers out by `where`, or "
            f"allow more by `tolerance`"
        )
    return Proof(error, absolute, rounding, max(errors, default=None))


def _proving(pairs: Iterable[Pair], errors: list[float]) -> dict[Any, Instead]:
    """Return what lets the layers of pairs compute as they do, and adds their errors."""
    waiting: dict[Any, list[Pair]] = {}
    for pair in pairs:
        waiting.setdefault(pair.call.operation, []).append(pair)

    def prove(these: list[Pair]) -> Instead:
        def instead(call: Any, x: Any, keywords: dict[str, Any]) -> Any:
            y = call(x, **keywords)
            errors.extend(_error_of(pair, x, y) for pair in these)
            return y

        return instead

    return {layer: prove(these) for layer, these in waiting.items()}


def _error_of(pair: Pair, x: Any, y: Any) -> float:
    wanted, got = (values.numpy() for values in _both(pair, x, y))
    error, _ = _distance([wanted], [got])
    if not error <= EXACT:
        verb = "undo" if pair.norm == "inserted" else "take"
        raise SurgeryError(
            f"{pair.call} does not {verb} its batch norm {'' if verb == 'undo' else 'in '}exactly: "
            f"the error max|a − b| / max|a| is {error:.2g} in float64; leave it out by `where`"
        )
    return error


def _both(pair: Pair, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return what the original makes of x, in float64, and what the changed layers make of it."""
    layer, axis, affine = pair.call.operation, pair.axis, pair.affine
    if pair.old is None or pair.new is None:
        output = torch.from_numpy(array_of(y))
        return output, _mapped(output, axis, affine)
    values = torch.from_numpy(array_of(x))
    got = _linear(layer, pair.new, values)
    match pair.norm:
        case "inserted":
            return _linear(layer, pair.old, values), _mapped(got, axis, affine)
        case "after":
            return _mapped(_linear(layer, pair.old, values), axis, affine), got
        case "before":
            return _linear(layer, pair.old, _mapped(values, axis, affine)), got


def _mapped(values: Tensor, axis: int, affine: Affine) -> Tensor:
    shape = (-1, *(1,) * (-1 - axis))
    scale, shift = (torch.from_numpy(each).reshape(shape) for each in (affine.scale, affine.shift))
    return values * scale + shift


def _linear(layer: Any, arrays: Arrays, x: Tensor) -> Tensor:
    """Return what a weight layer makes of x without its activation, (…) as Keras lays it out.

    The result of a transposed conv is not cropped: what is left is the same for each feature.
    """
    weights = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    y: Tensor
    if isinstance(layer, L.Dense):
        y = x @ weights["kernel"]
    else:
        last = layer.data_format == "channels_last"
        y = _convolved(layer, weights, x.movedim(-1, 1) if last else x)
        y = y.movedim(1, -1) if last else y
    if "bias" in weights:
        y = y + weights["bias"].reshape(-1, *(1,) * (-1 - features_axis(layer)))
    return y


def _convolved(layer: Any, weights: dict[str, Tensor], x: Tensor) -> Any:
    rank = len(layer.kernel_size)
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    how = {"stride": layer.strides, "dilation": layer.dilation_rate}
    if isinstance(layer, TRANSPOSED):
        turned = weights["kernel"].movedim((-1, -2), (0, 1))  # (in, out, *taps)
        transposed: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return transposed(x, turned, **how)
    x = F.pad(x, _padding(layer, x.shape[2:]))
    if isinstance(layer, (*DEPTHWISE, *SEPARABLE)):
        name = "kernel" if isinstance(layer, DEPTHWISE) else "depthwise_kernel"
        kernel = weights[name].movedim((-2, -1), (0, 1)).flatten(0, 1)[:, None]
        y = conv(x, kernel, groups=x.shape[1], **how)
        if isinstance(layer, DEPTHWISE):
            return y
        return conv(y, weights["pointwise_kernel"].movedim((-1, -2), (0, 1)))
    return conv(x, weights["kernel"].movedim((-1, -2), (0, 1)), groups=layer.groups, **how)


def _padding(layer: Any, sizes: Iterable[int]) -> list[int]:
    """Return the zeros around the places of x, last axis first, as F.pad takes them."""
    found: list[int] = []
    for n, k, s, d in zip(
        sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
    ):
        reach = (k - 1) * d
        if layer.padding == "same":  # TensorFlow's way: what is odd comes after
            total = max((-(-n // s) - 1) * s + reach + 1 - n, 0)
            found = [total // 2, total - total // 2, *found]
        else:
            found = [reach if layer.padding == "causal" else 0, 0, *found]
    return found


def _outputs(model: Any, example: Any) -> list[Array]:
    return [array_of(t) for t in keras.tree.flatten(infer(model, example))]


def _one_unit_more(example: Any) -> Any:
    def more(values: Any) -> Any:
        array = values if isinstance(values, np.ndarray) else keras.ops.convert_to_numpy(values)
        if not np.issubdtype(array.dtype, np.floating):
            return array
        return np.nextafter(array, np.array(np.inf, dtype=array.dtype))

    return keras.tree.map_structure(more, example)


def _distance(first: list[Array], second: list[Array]) -> tuple[float, float]:
    """Return the largest max|a − b| / max|a| and max|a − b|; infinite for unlike shapes."""
    error = absolute = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return np.inf, np.inf
        if a.size and not np.array_equal(a, b, equal_nan=True):
            difference = float(np.abs(a - b).max())  # NaN where only one of them is finite
            largest = float(np.abs(a).max())
            error = max(error, difference / largest if largest else np.inf)
            error = error if np.isfinite(difference) else np.inf
            absolute = max(absolute, difference)
    return error, absolute
