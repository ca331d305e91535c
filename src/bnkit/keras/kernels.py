"""The algebra of folding on Keras' kernels, in float64: layers that take in an affine map.

In inference a batch norm is y = scale · x + shift for each feature. Kernels are seen as (groups,
features out, features in, taps), whatever the way in which their layer stores them.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch
from keras import layers as L

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]  # by the names of a layer's weights

TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
CONVS = (L.Conv1D, L.Conv2D, L.Conv3D, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)
WEIGHT_LAYERS = (L.Dense, *CONVS)


@dataclass(frozen=True, eq=False)
class Affine:
    """The map scale · x + shift of each feature; both are (C,), in float64."""

    scale: Array
    shift: Array


def tensor_of(variable: Any) -> torch.Tensor:
    """Return the values of a variable or tensor of any backend, on the CPU, in their own dtype.

    It is float64 where torch does not have theirs.
    """
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if isinstance(value, torch.Tensor):  # Keras' way warns with NumPy 2.4
        return value.detach().cpu()
    array = np.asarray(keras.ops.convert_to_numpy(value))
    known = array.dtype.type.__module__ == "numpy"  # not bfloat16
    return torch.tensor(array if known else array.astype("float64"))


def array_of(variable: Any) -> Array:
    """Return the values of a variable or tensor of any backend, in float64."""
    return tensor_of(variable).double().numpy()


def arrays_of(layer: Any) -> Arrays:
    """Return the weights of a layer by their names, in float64.

    >>> dense = L.Dense(3)
    >>> dense.build((None, 2))
    >>> {name: array.shape for name, array in arrays_of(dense).items()}
    {'kernel': (2, 3), 'bias': (3,)}
    """
    return {weight.name: array_of(weight) for weight in layer.weights}


def affine_of(layer: Any) -> Affine:
    """Return what a BatchNormalization computes in inference, by its weights.

    The scale is γ/√(σ² + ε) and the shift β − μ · scale (Ioffe and Szegedy 2015, algorithm 2,
    line 11).

    Raises ValueError for a moving variance below 0, which Keras can make on the torch backend, and
    for values that are not finite.

    >>> norm = L.BatchNormalization(epsilon=3.0)
    >>> norm.build((None, 1))
    >>> affine_of(norm).scale
    array([0.5])
    """
    values = arrays_of(layer)
    sick = [name for name, array in values.items() if not np.isfinite(array).all()]
    if sick:
        raise ValueError(
            f"{sick[0]} of '{layer.name}' is NaN or infinite somewhere: go back to a checkpoint; "
            f"moving statistics can be measured anew with bnkit.keras.recalibrate"
        )
    variance = values["moving_variance"]
    if not (variance + layer.epsilon > 0).all():
        raise ValueError(
            f"the moving variance of '{layer.name}' is {variance.min():.3g} somewhere, and no "
            f"variance is below 0: measure it anew with bnkit.keras.recalibrate"
        )
    return affine_by(values, layer.epsilon)


def affine_by(values: Arrays, epsilon: float) -> Affine:
    """Return what a batch norm of these weights computes in inference.

    >>> values = {"moving_mean": np.array([1.0]), "moving_variance": np.array([4.0])}
    >>> affine_by(values, 0.0)
    Affine(scale=array([0.5]), shift=array([-0.5]))
    """
    scale = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + epsilon)
    return Affine(scale, values.get("beta", 0.0) - values["moving_mean"] * scale)


def features_axis(layer: Any) -> int:
    """Return the axis of the features in what a weight layer takes and makes, from the end.

    >>> features_axis(L.Dense(2)), features_axis(L.Conv2D(2, 1, data_format="channels_first"))
    (-1, -3)
    """
    if isinstance(layer, L.Dense) or layer.data_format == "channels_last":
        return -1
    return -1 - len(layer.kernel_size)


def after_layer(layer: Any, values: Arrays, affine: Affine) -> Arrays:
    """Return the weights of a layer that computes scale · layer(x) + shift.

    `values` are the weights that it has now. The bias is there in what is returned.

    >>> dense = L.Dense(1, use_bias=False)
    >>> dense.build((None, 1))
    >>> new = after_layer(dense, {"kernel": np.ones((1, 1))}, Affine(np.array([2.0]), np.ones(1)))
    >>> float(new["kernel"][0, 0]), float(new["bias"][0])
    (2.0, 1.0)
    """
    name = "pointwise_kernel" if isinstance(layer, SEPARABLE) else "kernel"
    kernel = _Kernel.of(layer, name, values[name])
    scaled = kernel.scaled(out=affine.scale)
    bias = affine.shift + affine.scale * values.get("bias", 0.0)
    return {**values, name: scaled.stored, "bias": bias}


def before_layer(layer: Any, values: Arrays, affine: Affine) -> Arrays:
    """Return the weights of a layer that computes layer(scale · x + shift), as `after_layer`.

    It is exact where `is_exact_before` says so.

    >>> dense = L.Dense(1)
    >>> dense.build((None, 1))
    >>> weights = {"kernel": np.full((1, 1), 3.0), "bias": np.ones(1)}
    >>> new = before_layer(dense, weights, Affine(np.array([2.0]), np.ones(1)))
    >>> float(new["kernel"][0, 0]), float(new["bias"][0])
    (6.0, 4.0)
    """
    first = "depthwise_kernel" if isinstance(layer, SEPARABLE) else "kernel"
    kernel = _Kernel.of(layer, first, values[first])
    response = kernel.response(affine.shift)
    if isinstance(layer, SEPARABLE):
        name = "pointwise_kernel"
        response = _Kernel.of(layer, name, values[name]).response(response)
    bias = values.get("bias", 0.0) + response
    return {**values, first: kernel.scaled(into=affine.scale).stored, "bias": bias}


def is_exact_before(layer: Any, affine: Affine) -> bool:
    """Return whether a map before `layer` can be taken in: whether all places are shifted alike.

    Zeros of padding are not shifted, and a transposed conv has places that fewer taps reach.

    >>> affine = Affine(np.ones(2), np.ones(2))
    >>> is_exact_before(L.Conv2D(2, 3), affine), is_exact_before(L.Conv2D(2, 3, padding="same"),
    ...                                                          affine)
    (True, False)
    """
    if isinstance(layer, L.Dense) or not affine.shift.any():
        return True
    one_tap = set(layer.kernel_size) == {1}
    if isinstance(layer, TRANSPOSED):
        return one_tap and set(layer.strides) == {1}
    return one_tap or layer.padding == "valid"


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel as `values` of (groups, features out, features in, taps), and how it is stored."""

    values: Array
    layer: Any
    name: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, layer: Any, name: str, kernel: Array) -> "_Kernel":
        flat = kernel.reshape(-1, *kernel.shape[-2:])  # (taps, a, b)
        if name == "pointwise_kernel" or isinstance(layer, L.Dense):
            seen = flat.transpose(2, 1, 0)[None]  # (taps, in, out)
        elif name == "depthwise_kernel" or isinstance(layer, DEPTHWISE):
            seen = flat.transpose(1, 2, 0)[:, :, None]  # (taps, in, multiplier): a group a feature
        elif isinstance(layer, TRANSPOSED):
            seen = flat.transpose(1, 2, 0)[None]  # (taps, out, in)
        else:
            grouped = flat.reshape(*flat.shape[:2], layer.groups, -1)  # (taps, in, groups, out)
            seen = grouped.transpose(2, 3, 1, 0)
        return cls(seen, layer, name, kernel.shape)

    def scaled(self, *, out: Array | None = None, into: Array | None = None) -> "_Kernel":
        """Return the kernel with its output features, or its input features, times a scale."""
        groups, features_out, features_in, _ = self.values.shape
        values = self.values
        if out is not None:
            values = values * out.reshape(groups, features_out, 1, 1)
        if into is not None:
            values = values * into.reshape(groups, 1, features_in, 1)
        return _Kernel(values, self.layer, self.name, self.shape)

    def response(self, constant: Array) -> Array:
        """Return what comes out, (features out,), where each input feature is constant."""
        groups, _, features_in, _ = self.values.shape
        found: Array = (self.values * constant.reshape(groups, 1, features_in, 1)).sum((2, 3))
        return found.reshape(-1)

    @property
    def stored(self) -> Array:
        """The kernel in the shape in which its layer stores it."""
        if self.name == "pointwise_kernel" or isinstance(self.layer, L.Dense):
            flat: Array = self.values[0].transpose(2, 1, 0)
        elif self.name == "depthwise_kernel" or isinstance(self.layer, DEPTHWISE):
            flat = self.values[:, :, 0].transpose(2, 0, 1)
        elif isinstance(self.layer, TRANSPOSED):
            flat = self.values[0].transpose(2, 0, 1)
        else:
            flat = self.values.transpose(3, 2, 0, 1)
        return flat.reshape(self.shape)
