"""What role a module or a torch call plays around a batch norm.

A weight layer starts a segment of the network, an activation ends it, and what passes values
through (pooling, reshaping, dropout, concatenation, sums) belongs to neither.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, TypeGuard

import numpy as np
from torch import nn


class Role(Enum):
    """The roles; `OTHER` ends a segment without being one of the others."""

    WEIGHTS = "a weight layer"
    ACTIVATION = "an activation"
    NORMALISATION = "a normalisation"
    PASSTHROUGH = "a pass-through"
    OTHER = "another operation"


# The layers that can own a batch norm, with the rank of a mini-batch of theirs (None: any).
WEIGHT_LAYERS: dict[type[nn.Module], int | None] = {
    nn.Linear: None,
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4,
    nn.ConvTranspose3d: 5,
}

# The file in which torch defines a layer says what family it is of.
_FAMILIES = {
    Role.WEIGHTS: "linear conv rnn sparse",
    Role.ACTIVATION: "activation",
    Role.NORMALISATION: "batchnorm instancenorm normalization",
    Role.PASSTHROUGH: """
    pooling dropout flatten padding upsampling pixelshuffle channelshuffle fold
    """,
}
_FUNCTIONS = {
    Role.ACTIVATION: """
    celu elu gelu glu gumbel_softmax hardshrink hardsigmoid hardswish hardtanh leaky_relu
    log_sigmoid log_softmax logsigmoid mish prelu relu relu6 rrelu selu sigmoid expit silu softmax
    softmin softplus softshrink softsign special_expit special_log_softmax special_softmax tanh
    tanhshrink threshold
    """,
    Role.WEIGHTS: """
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
    convolution embedding embedding_bag multi_head_attention_forward lstm gru rnn_tanh rnn_relu
    """,
    Role.NORMALISATION: """
    batch_norm native_batch_norm instance_norm layer_norm group_norm rms_norm local_response_norm
    normalize
    """,
    Role.PASSTHROUGH: """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
    lp_pool3d max_pool1d max_pool2d max_pool3d fractional_max_pool2d fractional_max_pool3d
    max_unpool1d max_unpool2d max_unpool3d mean amax amin max min logsumexp
    dropout alpha_dropout dropout1d dropout2d dropout3d feature_alpha_dropout feature_dropout
    T H mT mH t adjoint transpose swapaxes swapdims permute movedim moveaxis view view_as reshape
    reshape_as flatten unflatten ravel squeeze unsqueeze expand expand_as repeat repeat_interleave
    broadcast_to tile contiguous clone detach data to float half double bfloat16 type type_as cpu
    cuda __getitem__ __setitem__ narrow select index_select gather take_along_dim chunk split
    split_with_sizes tensor_split hsplit vsplit dsplit unbind unfold fold roll flip flipud fliplr
    rot90 as_strided where masked_fill masked_scatter masked_select unsafe_chunk unsafe_split copy
    nan_to_num
    pad constant_pad_nd interpolate upsample upsample_nearest upsample_bilinear pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle grid_sample
    cat concat concatenate stack hstack vstack dstack column_stack row_stack
    index_copy index_put index_add index_reduce scatter scatter_add scatter_reduce
    add sub subtract rsub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ sum neg negative
    positive
    """,
}
_ROLES_OF_FAMILIES, _ROLES_OF_FUNCTIONS = (
    {name: role for role, names in kinds.items() for name in names.split()}
    for kinds in (_FAMILIES, _FUNCTIONS)
)
# A product with a number or a parameter scales the value; one with another value (a gate) does not.
_PRODUCTS = frozenset(
    """
    mul multiply div divide true_divide __mul__ __rmul__ __imul__ __truediv__ __itruediv__
    """.split()
)
# Activations through which a network hands out its answer, a probability or one coordinate, by the
# names of torch's functions and classes in lower case.
_ANSWERS = frozenset(
    """
    sigmoid expit special_expit tanh softmax softmax2d special_softmax gumbel_softmax softmin
    log_softmax logsoftmax special_log_softmax logsigmoid log_sigmoid
    """.split()
)


def can_own_batch_norm(module: nn.Module | None) -> TypeGuard[nn.Module]:
    """Return whether `module` is a dense or conv layer, which can own a batch norm."""
    return isinstance(module, tuple(WEIGHT_LAYERS))


def layer_kind(layer: nn.Module | None) -> type[nn.Module]:
    """Return the kind of weight layer that `layer` is: nn.Conv2d for any subclass of it.

    >>> layer_kind(nn.Linear(1, 1)).__name__
    'Linear'
    """
    return next(kind for kind in WEIGHT_LAYERS if isinstance(layer, kind))


def role_of_module(module: nn.Module) -> Role:
    """Return the role of `module`, whatever library its class comes from.

    >>> role_of_module(nn.ReLU()), role_of_module(nn.Identity())
    (<Role.ACTIVATION: 'an activation'>, <Role.PASSTHROUGH: 'a pass-through'>)
    """
    if isinstance(module, nn.Identity):
        return Role.PASSTHROUGH
    if isinstance(module, nn.MultiheadAttention):
        return Role.WEIGHTS
    family = _family(module)
    if family is None and _is_foreign_normalisation(module):
        return Role.NORMALISATION
    return _ROLES_OF_FAMILIES.get(family or "", Role.OTHER)


def role_of_function(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Role:
    """Return the role of the torch function `name` when it is called like this.

    A tensor stands as its `Value` in the arguments, a parameter or buffer of the model as its name.

    >>> role_of_function("clamp", (7,), {"min": 0})
    <Role.ACTIVATION: 'an activation'>
    """
    name = _plain(name)
    if _is_rectifier(name, arguments, keywords):
        return Role.ACTIVATION
    if _is_scaling(name, arguments, keywords):
        return Role.PASSTHROUGH
    return _ROLES_OF_FUNCTIONS.get(name, Role.OTHER)


def gives_answers(activation: nn.Module | str) -> bool:
    """Return whether this activation, a module or a function's name, may end a network.

    >>> gives_answers(nn.Softmax(1)), gives_answers("tanh_"), gives_answers("relu")
    (True, True, False)
    """
    if isinstance(activation, str):
        return _plain(activation) in _ANSWERS
    return any(base.__name__.lower() in _ANSWERS for base in type(activation).__mro__)


def is_batch_norm(normalisation: nn.Module | str) -> bool:
    """Return whether a module, or the function of this name, is a batch norm.

    Torch's classes are, all that derive from them, and modules of other libraries, without layers
    inside but an activation or the like, whose class, or a base of it, has "BatchNorm" in its name,
    or which hold a running mean and a running variance and no weight but for each channel.

    >>> is_batch_norm(nn.SyncBatchNorm(2)), is_batch_norm("batch_norm"), is_batch_norm("layer_norm")
    (True, True, False)
    """
    if isinstance(normalisation, str):
        return "batch_norm" in normalisation
    if not _is_named_batch_norm(normalisation):
        return False
    # A ConvBatchNorm or a BatchNormLSTM, which normalises on its way, is a weight layer.
    return is_leaf(normalisation) and role_of_module(normalisation) is not Role.WEIGHTS


def is_leaf(module: nn.Module) -> bool:
    """Return whether a call of `module` is one step of the dataflow, not to be looked into.

    Torch's own layers are (and subclasses of them), and childless normalisations of other
    libraries; any other module is looked into, so that what its forward calls is seen.
    """
    if can_own_batch_norm(module):
        return True
    if _family(module) in (None, "container", "transformer"):
        return _is_foreign_normalisation(module)
    return not isinstance(module, nn.MultiheadAttention)


def _family(module: nn.Module) -> str | None:
    """Return the name of the torch file that defines the layer's class or its nearest base."""
    for base in type(module).__mro__:
        if base is nn.Module:
            return None
        if base.__module__.startswith("torch.nn.modules."):
            return base.__module__.rpartition(".")[2]
    return None


def _is_foreign_normalisation(module: nn.Module) -> bool:
    if "norm" in type(module).__name__.lower() and next(module.children(), None) is None:
        return True
    return _is_named_batch_norm(module) and all(map(_is_ending, module.children()))


def _is_ending(child: nn.Module) -> bool:
    """Return whether a batch norm may end in this child: it has no weights, and normalises not."""
    return role_of_module(child) in (Role.ACTIVATION, Role.PASSTHROUGH)


def _is_named_batch_norm(module: nn.Module) -> bool:
    named = any("batchnorm" in base.__name__.lower() for base in type(module).__mro__)
    return named or (_family(module) is None and _holds_running_statistics(module))


def _holds_running_statistics(module: nn.Module) -> bool:
    """Return whether it has vectors of running means and variances, and no larger weight."""
    names = [name.lower() for name, _ in module.named_buffers(recurse=False)]
    running = [name for name in names if name.startswith(("running_", "moving_"))]
    if not ({"mean", "avg"} & _last_words(running) and {"var", "variance"} & _last_words(running)):
        return False
    weights = module.parameters(recurse=False)
    return all(weight.numel() == max(weight.shape, default=1) for weight in weights)


def _last_words(names: Iterable[str]) -> set[str]:
    return {name.rpartition("_")[2] for name in names}


def _is_rectifier(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Return whether the call is clamp(min=0), by whatever spelling."""
    smallest = arguments[1] if len(arguments) > 1 else keywords.get("min")
    return name in ("clamp", "clip", "clamp_min") and _is_constant(smallest) and smallest == 0


def _is_scaling(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    return name in _PRODUCTS and any(map(_is_constant, (*arguments, keywords.get("other"))))


def _is_constant(argument: Any) -> bool:
    """Return whether this is a number, or the name of a parameter: no value of the dataflow."""
    # A Value is a subclass of int, so types are compared; numpy's numbers are of many types.
    return type(argument) in (int, float, complex, bool, str) or isinstance(argument, np.number)


def _plain(name: str) -> str:
    """Return a function's name without the endings of its other forms."""
    return name if name.startswith("__") else name.strip("_").removesuffix("_with_indices")
