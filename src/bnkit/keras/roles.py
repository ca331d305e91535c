"""What part a Keras layer or operation plays around a batch norm."""

from typing import Any

import keras
from keras import layers as L

from bnkit.keras.graph import graphs_of
from bnkit.keras.kernels import SEPARABLE, WEIGHT_LAYERS

NORMALISATIONS = (
    L.BatchNormalization,
    L.GroupNormalization,
    L.LayerNormalization,
    L.RMSNormalization,
    L.UnitNormalization,
)
# Identities in inference.
DROPOUTS = (
    L.ActivityRegularization,
    L.AlphaDropout,
    L.Dropout,
    L.GaussianDropout,
    L.GaussianNoise,
    L.Identity,
    L.SpatialDropout1D,
    L.SpatialDropout2D,
    L.SpatialDropout3D,
)
AVERAGES = (L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D)
GLOBAL_AVERAGES = (L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D)
_ACTIVATION_LAYERS = (L.Activation, L.ELU, L.LeakyReLU, L.PReLU, L.ReLU)
# By the names that keras.ops and keras.activations give them. Softmax is none: it makes outputs.
_ACTIVATIONS = frozenset(
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh "
    "leaky_relu log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign "
    "sparse_plus squareplus swish tanh tanh_shrink threshold".split()
)


def is_batch_norm(operation: Any) -> bool:
    """Return whether an operation is a BatchNormalization, subclasses included.

    >>> is_batch_norm(L.BatchNormalization())
    True
    """
    return isinstance(operation, L.BatchNormalization)


def batch_norms_of(model: Any) -> dict[str, Any]:
    """Return the batch norms of a Sequential or Functional model by their paths, each once.

    >>> list(batch_norms_of(keras.Sequential([keras.Input((2,)), L.BatchNormalization(name="n")])))
    ['n']
    """
    found: dict[int, tuple[str, Any]] = {}
    for graph in graphs_of(model):
        for call in graph.calls:
            if is_batch_norm(call.operation):
                found.setdefault(id(call.operation), (call.path, call.operation))
    return dict(found.values())


def is_activation(operation: Any) -> bool:
    """Return whether an operation is an activation, as a layer or of keras.ops.

    >>> is_activation(L.ReLU()), is_activation(L.Activation("softmax"))
    (True, False)
    """
    if isinstance(operation, L.Activation):
        return _name_of(operation.activation) in _ACTIVATIONS
    if isinstance(operation, keras.Layer):
        return isinstance(operation, _ACTIVATION_LAYERS)
    return type(operation).__name__.lower() in {name.replace("_", "") for name in _ACTIVATIONS}


def objection_to_kind(operation: Any) -> str | None:
    """Return why a layer with a kernel is none that batch norms are put behind; None for others.

    >>> layer = L.TimeDistributed(L.Dense(2))
    >>> layer.build((None, 3, 4))
    >>> objection_to_kind(layer)
    'TimeDistributed: only Dense and conv layers themselves are normalised'
    """
    if not isinstance(operation, keras.Layer) or isinstance(operation, WEIGHT_LAYERS):
        return None
    if not any(weight.name.endswith("kernel") for weight in operation.weights):
        return None
    return f"{type(operation).__name__}: only Dense and conv layers themselves are normalised"


def gives_answers(operation: Any) -> bool:
    """Return whether an operation makes probabilities of a model's last values.

    >>> gives_answers(L.Activation("softmax")), gives_answers(L.ReLU())
    (True, False)
    """
    if isinstance(operation, L.Activation):
        return _name_of(operation.activation) in ("softmax", "sigmoid", "log_softmax")
    return type(operation).__name__.lower() in ("softmax", "sigmoid", "logsoftmax")


def moves_features(operation: Any) -> bool:
    """Return whether an operation only moves values, so that features may change their axis.

    >>> moves_features(L.Flatten()), moves_features(L.Dense(2))
    (True, False)
    """
    kinds = (L.Flatten, L.Permute, L.RepeatVector, L.Reshape)
    return isinstance(operation, kinds) or (
        not isinstance(operation, keras.Layer)
        and type(operation).__name__ in ("ExpandDims", "Reshape", "Squeeze", "Transpose")
    )


def own_activation(layer: Any) -> str | None:
    """Return the name of the activation that a weight layer computes itself, None for none.

    >>> own_activation(L.Dense(2, activation="relu")), own_activation(L.Dense(2))
    ('relu', None)
    """
    name = _name_of(layer.activation)
    return None if name == "linear" else name


def objection_to_class(layer: Any) -> str | None:
    """Return why a layer need not compute what its class in Keras does, None if it does.

    >>> objection_to_class(L.Dense(2)) is None
    True
    """
    kind = next((k for k in (*WEIGHT_LAYERS, L.BatchNormalization) if isinstance(layer, k)), None)
    if kind is not None and type(layer).call is not kind.call:
        return f"{type(layer).__name__} has a `call` of its own"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantised ({layer.quantization_mode})"
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights: merge them first, by layer.merge_lora_weights() or by saving"
    return None


def objection_to_new_values(layer: Any) -> str | None:
    """Return why a weight layer cannot take in a batch norm, None if it can."""
    constraints = [
        name
        for name in ("kernel", "bias", "depthwise", "pointwise")
        if getattr(layer, f"{name}_constraint", None) is not None
    ]
    if constraints:
        return f"its {constraints[0]} has a constraint, which other values may break"
    return objection_to_class(layer)


def moves_values_only(operation: Any) -> bool:
    """Return whether an operation maps scale · x + shift to the same of what it makes of x.

    That is in inference, and for the same scale and shift in all places of a feature.

    >>> moves_values_only(L.Dropout(0.5)), moves_values_only(L.MaxPooling2D())
    (True, False)
    """
    if isinstance(operation, AVERAGES):
        return bool(operation.padding == "valid")
    if isinstance(operation, L.UpSampling2D):
        return bool(operation.interpolation == "nearest")
    alike = (*DROPOUTS, *GLOBAL_AVERAGES, L.UpSampling1D, L.UpSampling3D)
    return isinstance(operation, (*alike, L.Cropping1D, L.Cropping2D, L.Cropping3D))


def _name_of(activation: Any) -> str:
    return str(getattr(activation, "__name__", type(activation).__name__))


def kernel_name(layer: Any) -> str:
    """Return the name of the kernel that makes the output features of a weight layer."""
    return "pointwise_kernel" if isinstance(layer, SEPARABLE) else "kernel"
