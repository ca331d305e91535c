"""`Record`: one batch norm at one step; `NonFinite`: an event between two of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bnkit.tables import path_or_model, text_table

PERCENTS = (15, 50, 85)  # Ioffe and Szegedy 2015, figure 1
Percentiles = tuple[float, float, float]


@dataclass(frozen=True)
class Record:
    """What one batch norm did in one training step.

    `step` counts from 0. `input` and `output` are the 15th, 50th and 85th percentile of what a
    typical unit is given and hands to the nonlinearity: those of each channel over the mini-batch,
    then the median over the channels. Drifts say how far they have moved since the record before,
    in standard deviations of that record. `lag` is how far the running statistics, before this
    mini-batch entered them, are from the mini-batch's, in running standard deviations;
    `lag_by_chance` is how large that is if they are perfect, because both are averages over few
    rows. `never_positive` is the share of channels whose output is never over 0 in the mini-batch,
    so that a ReLU hands nothing on; `switched_off` that of channels with γ of under a hundredth of
    the layer's typical one. Gradients are Euclidean norms: of γ, of β and of the layer's output.

    NaN stands for what there is not: the drift of a first record, the lag of a layer without
    running statistics or with a mask, the gradient of a step without a backward, and for what NaN
    has spoilt.
    """

    step: int
    layer: str
    input: Percentiles
    output: Percentiles
    input_drift: float
    output_drift: float
    lag: float
    lag_by_chance: float
    never_positive: float
    switched_off: float
    weight_gradient: float
    bias_gradient: float
    output_gradient: float

    def scalars(self) -> Iterator[tuple[str, float]]:
        """Yield the names and values of all numbers, percentiles one by one, in their order.

        >>> nothing = [float("nan")] * 9
        >>> record = Record(0, "1", (-1.0, 0.0, 1.0), (-0.5, 0.0, 0.5), *nothing)
        >>> [name for name, value in record.scalars() if value > 0]
        ['input_85', 'output_85']
        """
        for name in [field.name for field in fields(self)][2:]:
            value = getattr(self, name)
            if isinstance(value, tuple):
                yield from zip((f"{name}_{p}" for p in PERCENTS), value, strict=True)
            else:
                yield name, value


@dataclass(frozen=True)
class NonFinite:
    """NaN or infinity that reached a batch norm in one of the steps `first` to `last`.

    `batches` is how many mini-batches bnkit's guard kept out of the running statistics (0 for a
    layer without it), `channels` in how many the running statistics, or the input of the last of
    these steps, are not finite.
    """

    layer: str
    first: int
    last: int
    batches: int
    channels: int

    def __str__(self) -> str:
        when = f"step {self.last}" if self.first == self.last else f"steps {self.first}–{self.last}"
        layer = f"layer '{self.layer}'" if self.layer else "the model"
        kept_out = f", {self.batches} mini-batches kept out" if self.batches else ""
        held = f", {self.channels} channels not finite" if self.channels else ""
        return f"NaN or infinity reached {layer} in {when}{kept_out}{held}."


def plain(entry: Record | NonFinite) -> dict[str, Any]:
    """Return the record as plain data, with None for what is no finite number.

    >>> plain(NonFinite("1", 0, 9, batches=1, channels=0))
    {'layer': '1', 'first': 0, 'last': 9, 'batches': 1, 'channels': 0}
    """
    return {key: _plain(value) for key, value in asdict(entry).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_of(records: Sequence[Record]) -> str:
    """Return a table of these records, one a row.

    >>> record = Record(0, "1", (-1.0, 0.0, 1.0), (-0.5, 0.0, 0.5), *[float("nan")] * 9)
    >>> table_of([record]).splitlines()[-1].split()[:9]
    ['1', '-1', '0', '1', '–', '-0.5', '0', '0.5', '–']
    """
    first, *others = (f"{p}%" for p in PERCENTS)
    headers = ["layer", f"in {first}", *others, "drift", f"out {first}", *others, "drift", "lag"]
    headers += ["by chance", "≤ 0", "γ ≈ 0", "|∂γ|", "|∂β|", "|∂y|"]
    return text_table(headers, map(_row, records), width=140)


def _row(record: Record) -> tuple[str, ...]:
    numbers = [*record.input, record.input_drift, *record.output, record.output_drift]
    numbers += [record.lag, record.lag_by_chance]
    gradients = (record.weight_gradient, record.bias_gradient, record.output_gradient)
    return (
        path_or_model(record.layer),
        *map(_number, numbers),
        *(_number(share, "{:.0%}") for share in (record.never_positive, record.switched_off)),
        *map(_number, gradients),
    )


def _number(value: float, form: str = "{:.2g}") -> str:
    return "–" if math.isnan(value) else form.format(value)
