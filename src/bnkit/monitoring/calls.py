"""`Calls`: the calls of batch norms in one forward; those with few values are measured together."""

from typing import Any

import torch
from torch import Tensor, nn

from bnkit.monitoring.measuring import (
    Channels,
    Given,
    are_few,
    look_at_input,
    look_at_output,
    look_at_state,
)

# What a layer had, (3, C), and its input: as it is where that is few values, else what is known.
_Begun = tuple[nn.Module, bool, Tensor, Tensor | Given]
# Path, (3, C), copies of input and output.
_Small = tuple[str, Tensor, Tensor, Tensor]


class Calls:
    """What the first call of each layer was given and returned.

    Calls with many values are measured while they run, so that nothing large is kept. Of the others
    copies wait for `seen`, where layers of one shape lie side by side as if they were one.
    """

    def __init__(self) -> None:
        self.order: list[str] = []
        self._begun: dict[str, _Begun] = {}
        self._small: dict[Any, list[_Small]] = {}
        self._seen: list[Channels] = []

    def begin(self, path: str, layer: nn.Module, values: Tensor, *, fused: bool) -> None:
        """Look at the input `values` (N, C, ...) of a call, if it is the layer's first."""
        if path in self._begun or path in self.order:
            return
        few = are_few(values) and not fused
        given = values.detach().clone() if few else look_at_input(values)
        self._begun[path] = layer, fused, look_at_state(layer, values), given

    def end(self, path: str, output: Tensor) -> bool:
        """Look at the output of a call, and return whether it is the layer's first."""
        if path not in self._begun:
            return False
        layer, fused, state, given = self._begun.pop(path)
        self.order.append(path)
        if isinstance(given, Tensor):
            kept = output.detach().clone()
            like = (given.shape, given.dtype, given.device, kept.shape, kept.dtype, state.dtype)
            self._small.setdefault(like, []).append((path, state, given, kept))
        else:
            table = look_at_output(given, output, fused_in=layer if fused else None)
            self._seen.append(_channels((path,), table, state))
        return True

    def seen(self) -> list[Channels]:
        """Return what is known of all calls that have ended."""
        for calls in self._small.values():
            paths, states, inputs, outputs = zip(*calls, strict=True)
            given = look_at_input(torch.cat(inputs, 1))
            table = look_at_output(given, torch.cat(outputs, 1))
            self._seen.append(_channels(paths, table, torch.cat(states, 1)))
        self._small.clear()
        return self._seen


def _channels(paths: tuple[str, ...], table: Tensor, states: Tensor) -> Channels:
    whole = torch.cat([table, states.to(table.dtype)])
    return Channels(paths, whole.reshape(len(whole), len(paths), -1))
