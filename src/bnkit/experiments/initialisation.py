"""The initial weights of a network, drawn by a named scheme from a given generator."""

import math
from collections.abc import Callable, Iterator
from functools import partial

from torch import Generator, Tensor, nn

from bnkit.names import unknown_name

Draw = Callable[..., object]  # fills (out, in, ...) in place, by `generator`

SCHEMES = ("default", "glorot", "he", "normal:STD")


def initialise_(model: nn.Module, scheme: str, *, generator: Generator) -> None:
    """Draw a new weight for every linear and convolution layer, and set its bias to zero.

    The layers come in the order of `named_modules`, so that one seed gives one set of arrays;
    other parameters (embeddings, recurrent and attention projections) stay as they are.
    `scheme` is "glorot" (uniform; Glorot and Bengio 2010, equation 16), "he" (normal, variance
    2 / fan in; He et al. 2015, equation 10), "normal:STD" (mean 0, this standard deviation), or
    "default", which leaves weights and biases as torch drew them.

    Raises ValueError for an unknown scheme, a model without such layers, and a weight that
    cannot be drawn since a parametrization computes it or it has no shape yet.

    >>> import torch
    >>> layer = nn.Linear(3, 2)
    >>> initialise_(layer, "normal:0.05", generator=torch.Generator().manual_seed(0))
    >>> layer.bias
    Parameter containing:
    tensor([0., 0.], requires_grad=True)
    """
    draw = parse_scheme(scheme)
    if draw is None:
        return
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, _WEIGHTED)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no linear or convolution layer to initialise: "
            f"leave its weights as they are with the scheme 'default'"
        )
    for name, layer in layers:
        _check_own(name, layer)
    for _, layer in layers:
        for weight in _forward_weights(layer):
            draw(weight, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def parse_scheme(text: str) -> Draw | None:
    """Return what draws a weight of shape (out, in, ...) in place; None for "default".

    Raises ValueError for an unknown scheme or a standard deviation that is not a positive number.

    >>> parse_scheme("default") is None
    True
    """
    kind, colon, value = text.partition(":")
    if kind == "normal":
        return partial(nn.init.normal_, std=_deviation(text, value))
    if colon or kind not in _DRAWS:
        raise ValueError(unknown_name("initialisation", text, SCHEMES))
    return _DRAWS[kind]


def _deviation(text: str, value: str) -> float:
    try:
        std = float(value)
    except ValueError:
        std = math.nan
    if not 0 < std < math.inf:
        raise ValueError(
            f"initialisation {text!r} needs a positive, finite standard deviation after the "
            f"colon, as in 'normal:0.05'"
        )
    return std


_DRAWS: dict[str, Draw | None] = {
    "default": None,
    "glorot": nn.init.xavier_uniform_,
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


def _check_own(name: str, layer: nn.Module) -> None:
    own = dict(layer.named_parameters(recurse=False))
    computed = [n for n in ("weight", "bias") if n not in own and getattr(layer, n) is not None]
    if computed:
        raise ValueError(
            f"the {computed[0]} of layer {name!r} is computed by a parametrization, so drawing it "
            f"would change nothing: initialise the model first, then add the parametrization"
        )
    if nn.parameter.is_lazy(own["weight"]):
        raise ValueError(
            f"layer {name!r} has no shape yet: run the model on an example before initialising it"
        )


def _forward_weights(layer: nn.Module) -> Iterator[Tensor]:
    """Yield views of the weight in the layout (out, in, ...), by which torch counts its fans."""
    weight = layer.get_parameter("weight").detach()
    if not isinstance(layer, _TRANSPOSED):
        yield weight
    else:  # (in, out / groups, ...)
        for group in weight.chunk(layer.groups):
            yield group.transpose(0, 1)
