"""What is wrapped around a model, taken off."""

import sys
from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of DataParallel, DistributedDataParallel and torch.compile.

    It shares all parameters and buffers with what is around it.

    >>> layer = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    dynamo: Any = sys.modules.get("torch._dynamo")  # without it nothing can be compiled
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif dynamo is not None and isinstance(model, dynamo.OptimizedModule):
            model = model._orig_mod  # noqa: SLF001  torch's own documentation names it
        else:
            return model
