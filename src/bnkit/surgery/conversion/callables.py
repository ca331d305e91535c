"""Conversion by a callable of the user: an edit puts what it returns in the place of the layer."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from bnkit.surgery.conversion.choosing import objection_of_user
from bnkit.surgery.conversion.survey import Where, candidates
from bnkit.surgery.operations import Edit, replace_module
from bnkit.surgery.plan import LeftAlone

ToLayer = Callable[[nn.Module], nn.Module]


def edit_by_callable(path: str, layer: nn.Module, to: ToLayer) -> Edit:
    """Return the edit that puts `to(layer)` in the place of the layer, wherever the model has it.

    >>> edit_by_callable("1", nn.BatchNorm1d(3), nn.Identity).structure["to"]
    {'callable': 'Identity'}
    """
    name = getattr(to, "__qualname__", type(to).__qualname__)
    options = {"to": to, "options": {}}
    return Edit(path, type(layer).__name__, "", f"`{name}` made it", "convert_layer", options)


def choose_for_callable(
    model: nn.Module, to: ToLayer, where: Where | None
) -> tuple[list[Edit], list[LeftAlone]]:
    """Return the edits of the layers that the user wants to be converted, and the other layers."""
    edits, rest = [], []
    for path, layer in candidates(model):
        why = objection_of_user(path, layer, where)
        if why is None:
            edits.append(edit_by_callable(path, layer, to))
        else:
            rest.append(LeftAlone(path, type(layer).__name__, why))
    return edits, rest


def refuse_options(to: Any, options: Iterable[str]) -> None:
    """Raise TypeError for a `to` that is no callable, and for options, which a callable has not.

    >>> refuse_options(nn.Identity, ["num_groups"])
    Traceback (most recent call last):
    TypeError: `num_groups` is an option of kinds that are called by name, and `to` is a callable: \
bind it to that, as by functools.partial
    """
    if not callable(to):
        raise TypeError(f"`to` is a {type(to).__name__}: pass the name of a kind, or a callable")
    for name in options:
        raise TypeError(
            f"`{name}` is an option of kinds that are called by name, and `to` is a callable: "
            f"bind it to that, as by functools.partial"
        )


def put_what_is_made(model: nn.Module, layer: str, to: ToLayer) -> None:
    """Put `to(layer)` in the place of the layer; TypeError if that is not a module.

    >>> model = nn.Sequential(nn.BatchNorm1d(3))
    >>> put_what_is_made(model, "0", lambda norm: nn.Identity())
    >>> model[0]
    Identity()
    """
    old = model.get_submodule(layer)
    new = to(old)
    if not isinstance(new, nn.Module):
        raise TypeError(
            f"`to` returned a {type(new).__name__} for layer '{layer}' ({type(old).__name__}): it "
            f"must return a module"
        )
    if new is not old:
        replace_module(model, layer, new)
