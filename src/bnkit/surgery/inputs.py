"""What a model is given: which of its arguments, and the statistics of that one's features."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call
from bnkit.moments import Moments

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch cannot compare


@dataclass(frozen=True)
class Argument:
    """One argument of the model's calls: its name, its position, or both."""

    name: str | None
    position: int | None

    def of(self, call: Call) -> Any:
        """Return what this call gives for it, None where it gives nothing."""
        args, kwargs = call
        if self.name in kwargs:
            return kwargs[self.name]
        if self.position is not None and self.position < len(args):
            return args[self.position]
        return None

    def __str__(self) -> str:
        return f"argument {self.position}" if self.name is None else repr(self.name)


@dataclass(frozen=True, eq=False)
class Sample:
    """The moments of each feature, and its least and largest value, which tell what is constant."""

    moments: Moments
    least: Tensor
    largest: Tensor

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(
            self.moments + other.moments,
            torch.minimum(self.least, other.least),
            torch.maximum(self.largest, other.largest),
        )

    @property
    def constant(self) -> Tensor:
        """Which features have one value only, (C,)."""
        return self.least == self.largest


def choose(model: nn.Module, call: Call, chosen: str | int | None) -> Argument:
    """Return which argument is meant; without a choice, the only tensor."""
    args, kwargs = call
    names = _positional_names(model)
    by_position = [Argument(dict(enumerate(names)).get(i), i) for i in range(len(args))]
    by_name = [Argument(k, names.index(k) if k in names else None) for k in kwargs]
    given = [*by_position, *by_name]
    if chosen is None:
        found = [argument for argument in given if isinstance(argument.of(call), Tensor)]
    else:
        found = [argument for argument in given if chosen in (argument.name, argument.position)]
    if len(found) == 1:
        return found[0]
    shown = "; ".join(f"{argument}, {_described(argument.of(call))}" for argument in given)
    raise ValueError(
        f"`argument` is {chosen!r}, and {type(model).__name__} is called with "
        f"{shown or 'nothing'}: choose, by its name or position, the one to standardise"
    )


def _positional_names(model: nn.Module) -> list[str]:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}"


def check(values: Any, axis: int, place: str, features: int | None) -> None:
    """Raise TypeError or ValueError for what has no features on `axis`, or not so many.

    `place` is the beginning of the message.
    """
    if not isinstance(values, Tensor) or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(
            f"{place}, {_described(values)}: only tensors of real numbers can be standardised; "
            f"choose another by `argument=`"
        )
    dims = values.dim()
    if dims < 2 or not -dims <= axis < dims or axis % dims == 0:
        raise ValueError(
            f"{place}, {_described(values)}, and `channel_axis` is {axis}: it must be the axis of "
            f"the features, beside axis 0, which is the mini-batch's"
        )
    if not values.numel():
        raise ValueError(f"{place}, {_described(values)}, which is empty: leave it out")
    if features not in (None, values.shape[axis]):
        raise ValueError(
            f"{place}, {_described(values)}, and those before it had {features} features on axis "
            f"{axis}: all must have the same, or pass another `channel_axis`"
        )


def sample_of(values: Tensor, axis: int, place: str) -> Sample:
    """Return the sample of `values`; ValueError, beginning with `place`, if they are not finite."""
    values = values.detach()
    others = [other for other in range(values.dim()) if other != axis % values.dim()]
    comparable = values.to(torch.float64) if values.dtype in _UNSIGNED else values
    least, largest = comparable.amin(others).cpu(), comparable.amax(others).cpu()
    moments = Moments.of(values, channel_axis=axis)
    wide = Moments(moments.count, moments.mean.cpu().double(), moments.deviations.cpu().double())
    for feature, deviation in enumerate(wide.deviations.isfinite().tolist()):
        if not deviation:
            raise ValueError(
                f"{place} with values in feature {feature} that are not finite (NaN, infinite, or "
                f"too large for their squares): mend them, or leave the mini-batch out"
            )
    return Sample(wide, least, largest)
