"""`standardize`: the mean and standard deviation of the training inputs, kept with the model."""

import functools
import inspect
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call, Inputs, calls_of
from bnkit.dataflow import duplicate
from bnkit.dataflow.tensors import replace_tensors
from bnkit.layers.exchange import Place, Ranks, exchange
from bnkit.moments import Moments
from bnkit.observation import NotEnoughMemoryError, on_the_side
from bnkit.options import parameters_of, showing
from bnkit.parameters import check_readable
from bnkit.surgery.operations import Edit, operation, write_values
from bnkit.surgery.plan import Plan
from bnkit.surgery.standardized import Standardize, Standardized
from bnkit.surgery.verification import SurgeryError

# Integers of up to 16 bits are exact in float32; those of the other types need float64.
_SHORT_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16)


_NAME = "(inputs of all ranks)"  # what errors of the exchange call us


@dataclass(frozen=True)
class Standardization(Plan):
    """The plan of `standardize`, made from so many `batches`."""

    batches: int = 0


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


def standardize(
    model: nn.Module,
    batches: Any,
    *,
    channel_axis: int = 1,
    argument: str | int | None = None,
    inputs: Inputs | None = None,
) -> nn.Module:
    """Return a `Standardized`: a copy of `model` behind a layer that standardises its inputs.

    The layer takes from each feature its mean over all `batches` and divides by its standard
    deviation (of the population: n in the denominator), both pooled exactly in float64 over
    mini-batches of any sizes. Features lie on `channel_axis`: columns of (N, F), channels of
    (N, C, L) and (N, C, H, W); pass -1 for (N, T, F). A feature that is constant is left unscaled:
    its std is 1, so that it becomes 0. `mean` and `std` are in the state dict, so they travel with
    the model: give the result raw inputs, of any real dtype, as in training so in use. Integers
    become floats: a model of images takes uint8.

    Of several inputs, `argument` says by name or position which one is standardised. `batches` and
    `inputs` are what `bnkit.batches.calls_of` takes. `model`, whose copy is the child `model`,
    stays as it is; `rebind(optimizer, model, result.model)` takes an optimizer along.

    Raises ValueError for a model that is standardised already, for no or empty mini-batches, for
    one value per feature, for inputs with NaN or infinite values, naming mini-batch and feature,
    and where one of several inputs must be chosen; TypeError for inputs that are no real numbers;
    SurgeryError if the copy fails on the first mini-batch. Errors of `batches` itself pass through.

    >>> images = [torch.tensor([[[[0, 100]]], [[[200, 255]]]], dtype=torch.uint8)]
    >>> net = standardize(nn.Conv2d(1, 2, 1), images)
    >>> net.standardize.mean, net.standardize.std
    (tensor([138.7500]), tensor([97.4920]))
    >>> net(images[0]).dtype
    torch.float32
    """
    calls = _calls(model, batches, inputs)
    first = next(calls)
    changed = _plan(model, itertools.chain([first], calls), channel_axis, argument).apply(model)
    _check_that_it_runs(changed, first)
    return changed


def plan_standardization(
    model: nn.Module,
    batches: Any,
    *,
    channel_axis: int = 1,
    argument: str | int | None = None,
    inputs: Inputs | None = None,
) -> Standardization:
    """Return what `standardize` would do; raises as it does, but for a copy that fails.

    >>> plan = plan_standardization(nn.Linear(2, 1), torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> plan.edits[0].action
    "standardise 'input': 2 features on axis 1"
    >>> plan.edits[0].why
    '2 values per feature, means 2 to 5, standard deviations 1 to 1, 1 constant and left unscaled'
    """
    return _plan(model, _calls(model, batches, inputs), channel_axis, argument)


@dataclass(frozen=True)
class StandardizedInput:
    """Which input is standardised, of how many features on which axis, in which dtype."""

    num_features: int
    channel_axis: int
    argument: str | None
    position: int | None
    dtype: str

    def __post_init__(self) -> None:
        if self.position is not None and self.position < 0:
            raise ValueError(f"`position` is {self.position!r}: pass that of an input, from 0")


@operation
@showing(parameters_of(StandardizedInput))
def standardize_input(
    model: nn.Module,
    layer: str,
    *,
    values: Mapping[str, Tensor] | None = None,
    **input_options: Any,
) -> Standardized:
    """Return `model` itself behind a layer with these values: "mean" and "std", else 0 and 1.

    `layer` is "", the model; ValueError for any other.

    >>> which = {"num_features": 2, "channel_axis": 1, "argument": "input", "position": 0}
    >>> standardize_input(nn.Linear(2, 1), "", **which, dtype="float32").standardize.std
    tensor([1., 1.])
    """
    if layer:
        raise ValueError(f"`layer` is {layer!r}: only what the whole model '' is given can be")
    given = StandardizedInput(**input_options)
    made = Standardize(
        given.num_features,
        channel_axis=given.channel_axis,
        device=_device_of(model),
        dtype=getattr(torch, given.dtype),
    )
    write_values(made, "", values=values)
    return Standardized(made, model, argument=given.argument, position=given.position)


def _calls(model: nn.Module, batches: Any, inputs: Inputs | None) -> Iterator[Call]:
    check_readable(model)
    if isinstance(model, Standardized):
        raise ValueError(  # noqa: TRY004  of the right type, but not twice
            "`model` is a Standardized, whose inputs are standardised already: pass its .model to "
            "do it anew"
        )
    return calls_of(model, batches, inputs=inputs)


def _plan(
    model: nn.Module, calls: Iterable[Call], axis: int, chosen: str | int | None
) -> Standardization:
    sample: Sample | None = None
    argument: Argument | None = None
    dtype, batches = torch.float32, 0
    for batches, call in enumerate(calls, start=1):
        argument = argument or _choose(model, call, chosen)
        place = f"mini-batch {batches} gives {argument}"
        values = argument.of(call)
        _check(values, axis, place, None if sample is None else len(sample.least))
        seen = _sample_of(values, axis, place)
        sample = seen if sample is None else sample + seen
        dtype = torch.promote_types(dtype, _dtype_of_statistics(values.dtype))
    assert sample is not None  # calls_of refuses `batches` without a mini-batch
    assert argument is not None
    sample = _of_all_ranks(sample)
    layer = _layer(sample, axis, dtype)
    edit = _edit(type(model).__name__, layer, sample, argument)
    return Standardization((edit,), (), batches=batches)


def _of_all_ranks(sample: Sample) -> Sample:
    """Return the sample of all ranks of torch.distributed together, the same on each."""
    if Ranks().is_alone(_NAME):
        return sample
    moments, features = sample.moments, len(sample.least)
    columns = (moments.mean, moments.deviations, sample.least, sample.largest)
    values = torch.cat([column.double() for column in columns])
    counts, shares = exchange(moments.count, values, Place(_NAME, 1, "forward", features), None)
    samples = [
        Sample(Moments(count, mean, deviations), least, largest)
        for count, (mean, deviations, least, largest) in zip(
            counts, (torch.split(share, features) for share in shares), strict=True
        )
    ]
    return functools.reduce(operator.add, samples)


def _layer(sample: Sample, axis: int, dtype: torch.dtype) -> Standardize:
    if sample.moments.count < 2:
        raise ValueError(
            "`batches` give 1 value per feature, and one value has no standard deviation: pass more"
        )
    std = sample.moments.variance.sqrt().to(dtype)
    with torch.inference_mode(mode=False):
        layer = Standardize(len(std), channel_axis=axis, dtype=dtype)
        layer.mean.copy_(torch.where(sample.constant, sample.least, sample.moments.mean))
        layer.std.copy_(torch.where(sample.constant | (std == 0), 1, std))  # 0 by underflow
    return layer


def _edit(kind: str, layer: Standardize, sample: Sample, argument: Argument) -> Edit:
    features, axis = layer.num_features, layer.channel_axis
    constant = int(sample.constant.sum())
    why = [f"{sample.moments.count:,} values per feature", f"means {_range(layer.mean)}"]
    if constant < features:
        why += [f"standard deviations {_range(layer.std[~sample.constant])}"]
    if constant:
        why += [f"{constant} constant and left unscaled"]
    options = {
        "num_features": features,
        "channel_axis": axis,
        "argument": argument.name,
        "position": argument.position,
        "dtype": str(layer.mean.dtype).removeprefix("torch."),
    }
    values = {"mean": layer.mean, "std": layer.std}
    action = f"standardise {argument}: {features} feature{'s' * (features > 1)} on axis {axis}"
    return Edit("", kind, action, ", ".join(why), "standardize_input", options, values)


def _range(values: Tensor) -> str:
    return f"{values.min().item():.3g} to {values.max().item():.3g}"


def _dtype_of_statistics(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of mean and std: float32 at least, and exact for the integers of `dtype`."""
    if dtype in _SHORT_INTEGERS:
        return torch.float32
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float64


def _device_of(model: nn.Module) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers(), [torch.empty(0)])).device


def _check_that_it_runs(changed: nn.Module, call: Call) -> None:
    device = _device_of(changed)
    subject = duplicate(changed)
    args, kwargs = replace_tensors(call, lambda t: t.detach().clone().to(device))
    try:
        with on_the_side(subject):
            subject(*args, **kwargs)
    except NotEnoughMemoryError:
        raise
    except Exception as error:
        raise SurgeryError(
            f"with standardised inputs the model fails on the first mini-batch: "
            f"{type(error).__name__}: {error}. Is what it takes a number, and no index or mask? "
            f"`argument=` chooses among several"
        ) from error


# --- what the model is given: which of its arguments, and the statistics of its features


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch cannot compare


def _choose(model: nn.Module, call: Call, chosen: str | int | None) -> Argument:
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


def _check(values: Any, axis: int, place: str, features: int | None) -> None:
    """Raise where there are no features on `axis`, or not so many; `place` begins the message."""
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


def _sample_of(values: Tensor, axis: int, place: str) -> Sample:
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
                f"too large for their squares): fix them, or leave the mini-batch out"
            )
    return Sample(wide, least, largest)
