"""What a call costs, counted: numbers that Python waits for, and calls of a function."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts how often Python needs a number, for which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def counted(function, calls):
    """Return `function`, which notes its first argument in `calls`."""

    def call(first, *args, **kwargs):
        calls.append(first)
        return function(first, *args, **kwargs)

    return call
