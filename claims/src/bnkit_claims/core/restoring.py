"""Frozen records from the plain data that `dataclasses.asdict` made of them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def restored(record: type[Record], plain: Mapping[str, Any]) -> Record:
    """Return the record of type `record` whose fields, nested ones too, are these plain values.

    Records in tuples and optional ones come back as records, lists as tuples.

    >>> from bnkit.experiments.results import Curve
    >>> restored(Curve, {"steps": [10, 20], "metric": [0.5, 0.9]})
    Curve(steps=(10, 20), loss=(), metric=(0.5, 0.9), training_mode_metric=())
    """
    kinds = _hints(record)
    return record(**{name: _value(kinds[name], value) for name, value in plain.items()})


def _hints(record: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in fields(record)}


def _value(kind: Any, value: Any) -> Any:
    if isinstance(value, list | tuple):
        inner = get_args(kind)[0] if get_origin(kind) is tuple else Any
        return tuple(_value(inner, item) for item in value)
    if get_origin(kind) is UnionType:
        kind = next((each for each in get_args(kind) if is_dataclass(each)), Any)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return restored(kind, value)
    return value
