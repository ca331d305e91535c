"""Layers that own a batch norm: an instance of a layer's class becomes one of a subclass of it.

So `isinstance` holds, the parameter names of old checkpoints stay valid, and no forward is
rewritten: `Conv2d` becomes a `Conv2d` that passes its own output (or input) through its child
`batchnorm`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.layers.leaves import TracedAsLeaf, is_proxy
from bnkit.observation import follow_mode
from bnkit.options import parameters_of, showing
from bnkit.surgery.operations import check_numbers, operation
from bnkit.surgery.quantisation import register
from bnkit.surgery.verification import SurgeryError

Side = Literal["output", "input"]

_BATCH_NORMS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}


@dataclass(frozen=True)
class Layout:
    """How the features of a layer lie in a tensor.

    `features` lie on `axis`: 1, or −1 in dense layers, where the statistics run over all other
    axes. `rank` is the number of dimensions of a mini-batch, None for any; `path` names the layer
    in messages.
    """

    path: str
    features: int
    axis: int
    rank: int | None


class Normalized(TracedAsLeaf):
    """What the made classes share: the child `batchnorm`, and how it meets a tensor."""

    batchnorm: nn.Module
    batchnorm_layout: Layout

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made at run time, so pickle and deepcopy must make it again.
        state = super().__reduce_ex__(protocol)[2:]
        return (_blank, type(self).__bases__, *state)


class NormalizedOutput(Normalized):
    """A layer whose own output passes through its batch norm."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if any(map(is_proxy, (*args, *kwargs.values()))):
            return self.call_of(*args, **kwargs)  # type: ignore[no-any-return]
        return _normalise(self, super().forward(*args, **kwargs))


class NormalizedInput(Normalized):
    """A layer whose own input passes through its batch norm, before any padding."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_proxy(input):
            return self.call_of(input, *args, **kwargs)
        return super().forward(_normalise(self, input), *args, **kwargs)


def own_batch_norm(
    layer: nn.Module,
    layout: Layout,
    *,
    place: type[Normalized],
    momentum: float | None,
    eps: float,
    like: Tensor | None = None,
) -> None:
    """Make `layer` own a new batch norm, in `place`; it keeps its identity and its parameters.

    The batch norm is in the layer's mode, and on the device of `like` (by default the layer's first
    parameter) with its dtype, but float32 at least.

    >>> layer = nn.Linear(4, 3)
    >>> layout = Layout("fc", features=3, axis=-1, rank=None)
    >>> own_batch_norm(layer, layout, place=NormalizedOutput, momentum=0.1, eps=1e-5)
    >>> layer(torch.randn(8, 4)).mean(0).abs().max() < 1e-6
    tensor(True)
    """
    if like is None:
        like = next(layer.parameters(), torch.empty(0))
    batch_norm = _BATCH_NORMS[layout.rank or 2](
        layout.features,
        momentum=momentum,
        eps=eps,
        device=like.device,
        dtype=torch.promote_types(like.dtype, torch.float32),
    )
    layer.__class__ = normalized_class(place, type(layer))
    object.__setattr__(layer, "batchnorm_layout", layout)
    layer.batchnorm = follow_mode(batch_norm, layer)


@dataclass(frozen=True)
class Ownership:
    """The batch norm that a layer is to own: on which side, how its features lie, its numbers."""

    side: Side
    features: int
    axis: int
    rank: int | None
    momentum: float | None
    eps: float

    def __post_init__(self) -> None:
        check_numbers(momentum=self.momentum, eps=self.eps)


@operation
@showing(parameters_of(Ownership))
def own_batch_norm_at(
    model: nn.Module,
    layer: str,
    *,
    drop_bias: bool = False,
    like: str | None = None,
    values: Mapping[str, Tensor] | None = None,
    **ownership: Any,
) -> None:
    """Make the layer of `model` at this path own a new batch norm, on its `side`, in place.

    `features`, `axis` and `rank` are those of `Layout`, `like` is the path of the layer by whose
    parameters the batch norm is made (by default its own), `drop_bias` takes the layer's own bias
    away. With `values` the model computes the same afterwards: they hold "mean" and "variance"
    (unbiased) of what the layer gives with its bias, and the number of mini-"batches".

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> layout = {"features": 3, "axis": -1, "rank": None}
    >>> own_batch_norm_at(model, "1", side="output", **layout, momentum=0.1, eps=1e-5, like="0")
    >>> model[1].batchnorm.num_features
    3
    """
    owner, given = model.get_submodule(layer), Ownership(**ownership)
    if given.side not in _PLACES:
        raise ValueError(f"`side` is {given.side!r}: choose from {tuple(_PLACES)}")
    if hasattr(owner, "batchnorm"):
        raise ValueError(f"layer '{layer}' ({type(owner).__name__}) has a `batchnorm` already")
    own_batch_norm(
        owner,
        Layout(layer, given.features, given.axis, given.rank),
        place=_PLACES[given.side],
        momentum=given.momentum,
        eps=given.eps,
        like=None if like is None else next(model.get_submodule(like).parameters()),
    )
    if values is not None:
        bias = owner.get_parameter("bias") if drop_bias else torch.zeros(())
        _undo(layer, owner.batchnorm, values, absorbed=_wide(bias))
    if drop_bias:
        owner.register_parameter("bias", None)


@torch.no_grad()
def _undo(path: str, batch_norm: Any, values: Mapping[str, Tensor], *, absorbed: Tensor) -> None:
    """Give the batch norm these statistics, and the weight and bias that undo them.

    The weight is sqrt(running_var + eps) and the bias the running mean, to which the bias that the
    layer loses is added (Ioffe and Szegedy 2015, section 3.1: with these the transform is the
    identity). All are computed in float64 from the running statistics as they are stored, so that
    nothing but the rounding of each is left.
    """
    state = batch_norm.state_dict()  # the tensors themselves
    state["running_mean"].copy_(values["mean"].cpu() - absorbed)
    state["running_var"].copy_(values["variance"])
    state["weight"].copy_((_wide(state["running_var"]) + batch_norm.eps).sqrt())
    state["bias"].copy_(_wide(state["running_mean"]) + absorbed)
    state["num_batches_tracked"].copy_(values["batches"])
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise SurgeryError(
            f"the statistics of layer '{path}' over `batches` are not finite: it gives NaN or "
            f"infinite values, or such whose square overflows; look for them in the mini-batches, "
            f"or leave the layer out by `where`"
        )


def _wide(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


_PLACES: dict[str, type[Normalized]] = {"output": NormalizedOutput, "input": NormalizedInput}


def normalized_class(place: type[Normalized], original: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of `original` that owns a batch norm in `place`.

    >>> normalized_class(NormalizedOutput, nn.Conv2d).__name__
    'NormalizedConv2d'
    """
    with _one_at_a_time:  # two threads that made one class each would not know each other's
        if (place, original) not in _classes:
            name = f"Normalized{original.__name__}"
            made = type(name, (place, original), {"__module__": __name__})
            register(made, original, output=place is NormalizedOutput)
            _classes[place, original] = made
        return _classes[place, original]


_one_at_a_time = threading.Lock()
_classes: dict[tuple[type[Normalized], type[nn.Module]], type[nn.Module]] = {}


def _blank(place: type[Normalized], original: type[nn.Module]) -> nn.Module:
    made = normalized_class(place, original)
    return made.__new__(made)


def _normalise(layer: Normalized, values: Tensor) -> Tensor:
    layout = layer.batchnorm_layout
    if values.dim() != (layout.rank or max(values.dim(), 2)):
        raise ValueError(
            f"layer '{layout.path}' normalises over the mini-batch and needs a batch axis: it got "
            f"a tensor of shape {tuple(values.shape)}; add one with x.unsqueeze(0), or stack "
            f"several examples"
        )
    if layout.axis == 1 or values.dim() == 2:
        return layer.batchnorm(values)  # type: ignore[no-any-return]
    return layer.batchnorm(values.flatten(0, -2)).view(values.shape)  # type: ignore[no-any-return]
