"""Which layers are converted: those that the user and their state allow; the others are listed."""

from collections.abc import Mapping

from torch import nn

from bnkit.surgery.conversion.groups import needs_group
from bnkit.surgery.conversion.kinds import family_of
from bnkit.surgery.conversion.survey import (
    Target,
    Use,
    Where,
    candidates,
    is_that_already,
    objection,
    refuse_shapes,
)
from bnkit.surgery.plan import LeftAlone

Layers = list[tuple[str, nn.Module]]

ALREADY = "it is that already"


def choose(
    model: nn.Module, target: Target, timeout: float | None, where: Where | None
) -> tuple[Layers, list[LeftAlone]]:
    """Return the layers that the user wants to be another kind, and the others.

    `timeout` is the time limit that synchronised layers are to have, None for any.
    """
    chosen, rest = [], []
    for path, layer in candidates(model):
        why = objection_of_user(path, layer, where)
        if why is None and is_that_already(layer, target) and not needs_group(layer, timeout):
            why = ALREADY
        if why is None:
            chosen.append((path, layer))
        else:
            rest.append(LeftAlone(path, type(layer).__name__, why))
    return chosen, rest


def objection_of_user(path: str, layer: nn.Module, where: Where | None) -> str | None:
    """Return why the user does not want this layer to be converted, or None.

    >>> objection_of_user("2", nn.GroupNorm(2, 4), None)
    'group norm, which only `where` chooses'
    """
    if where is not None:
        return None if where(path, layer) else "`where` did not choose it"
    family = family_of(layer)
    return None if family == "batch" else f"{family} norm, which only `where` chooses"


def part(chosen: Layers, target: Target, uses: Mapping[str, Use]) -> tuple[Layers, list[LeftAlone]]:
    """Part the chosen layers into those that can be converted, and the others.

    Raises SurgeryError, with the layer, where the new kind would have nothing to normalise by.
    """
    able, unable = [], []
    for path, layer in chosen:
        why = objection(layer, target, uses.get(path))
        if why is None:
            refuse_shapes(path, layer, target, uses.get(path, Use()))
            able.append((path, layer))
        else:
            unable.append(LeftAlone(path, type(layer).__name__, why))
    return able, unable
