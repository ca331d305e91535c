"""The twins of networks that bring their own batch norm side."""

from typing import Any

from torch import nn

from bnkit.dataflow import duplicate
from bnkit.surgery import add
from bnkit.surgery.normalized import Layout, NormalizedInput, NormalizedOutput, own_batch_norm
from bnkit.surgery.promise import SurgeryError


def add_to_logits_too(
    plain: nn.Module, example: Any, *, placement: str, momentum: float, eps: float
) -> nn.Module:
    """Return `bnkit.add`'s twin, whose last dense layer is normalised too, as in DLology's post.

    Raises SurgeryError after the activation, since no activation follows the last layer.
    """
    if placement != "before_activation":
        raise SurgeryError(
            f"`placement` is {placement!r}, and this network also normalises its outputs, which "
            f"no activation follows: use before_activation"
        )
    twin = add(plain, example, momentum=momentum, eps=eps)
    path, last = _dense_layers(twin)[-1]
    layout = Layout(path, last.out_features, axis=-1, rank=None)
    own_batch_norm(last, layout, place=NormalizedOutput, momentum=momentum, eps=eps)
    last.register_parameter("bias", None)
    return twin


def add_to_inputs(
    plain: nn.Module, example: Any, *, placement: str, momentum: float, eps: float
) -> nn.Module:
    """Return the twin of a network without hidden layers: its inputs are normalised.

    There is no activation to be before or after, so `placement` changes nothing.
    """
    del placement, example
    twin = duplicate(plain)
    path, first = _dense_layers(twin)[0]
    layout = Layout(path, first.in_features, axis=-1, rank=None)
    own_batch_norm(first, layout, place=NormalizedInput, momentum=momentum, eps=eps)
    return twin


def _dense_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
