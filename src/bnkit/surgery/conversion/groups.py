"""The process group of layers that become synchronised: whether one is to be made, and by whom."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn

from bnkit.layers.exchange import make_group
from bnkit.layers.sync import SynchronisedBatchNorm
from bnkit.surgery.conversion.survey import Target

_TIMEOUT = 300.0  # seconds that a rank waits for another


def check_timeout(timeout: float | None, options: Mapping[str, Any]) -> None:
    """Raise ValueError where a time limit is given, and there is no new group to have it.

    >>> check_timeout(60, {"process_group": None})
    Traceback (most recent call last):
    ValueError: `timeout` is 60 and `process_group` is given, which has a limit of its own: pass \
one of them, or make_group(60) as the group
    """
    if timeout is None:
        return
    if "process_group" in options:
        raise ValueError(
            f"`timeout` is {timeout} and `process_group` is given, which has a limit of its own: "
            f"pass one of them, or make_group({timeout}) as the group"
        )
    if not is_distributed():
        raise ValueError(
            f"`timeout` is {timeout}, and torch.distributed is not initialised, so there is no "
            f"group that it would be the limit of: initialise it first"
        )


def needs_group(layer: nn.Module, timeout: float | None) -> bool:
    """Return whether a synchronised layer has no group of its own, or is to have another limit.

    >>> needs_group(nn.BatchNorm1d(3), None)
    False
    """
    if not isinstance(layer, SynchronisedBatchNorm) or not is_distributed():
        return False
    return timeout is not None or layer.process_group is None


def with_group(target: Target, timeout: float | None) -> Target:
    """Return the target with a new group, where layers are to meet other ranks without one.

    All ranks have to call it.
    """
    if target.kind.name != "sync" or "process_group" in target.options or not is_distributed():
        return target
    group = make_group(_TIMEOUT if timeout is None else timeout)
    return replace(target, options={**target.options, "process_group": group})


def is_distributed() -> bool:
    """Return whether this process is one of several that torch.distributed knows."""
    return dist.is_available() and dist.is_initialized()
