"""`NonFinite`: NaN and infinities that reached a batch norm, also between two records."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnkit.monitoring.channels import running_statistics


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


class Events:
    """What the layers keep of non-finite mini-batches, looked at now and then.

    bnkit's guard counts them, and running statistics that a NaN or an infinity has entered never
    lose it again, so a look every hundred steps misses none; of layers without either, only the
    inputs in the steps that are looked at are known.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._next_step = 0
        # First and last step of each look that is not settled, and its counts, (L, 3).
        self._looks: list[tuple[int, int, Tensor]] = []
        self._known = {path: (int(_kept_out(layer) or 0), 0) for path, layer in layers.items()}

    def look(self, last: int, variances: Mapping[str, Tensor]) -> None:
        """Look at the layers after the step `last`, with the variances of what it gave them."""
        if last < self._next_step:
            return  # nothing has run since
        counts = [
            count
            for path, layer in self._layers.items()
            for count in (_kept_out(layer), _state(layer), _not_finite(variances.get(path)))
        ]
        self._looks.append((self._next_step, last, _stacked(counts).reshape(-1, 3)))
        self._next_step = last + 1

    def settle(self) -> list[NonFinite]:
        """Return the events of the looks since the last call; on a GPU this waits for it, once."""
        new = []
        for first, last, counts in self._looks:
            for path, (kept_out, in_state, in_input) in zip(
                self._layers, counts.tolist(), strict=True
            ):
                kept_out_before, in_state_before = self._known[path]
                self._known[path] = (kept_out, in_state)
                batches = max(0, kept_out - kept_out_before)
                if batches or in_input or in_state > in_state_before:
                    new.append(NonFinite(path, first, last, batches, max(in_state, in_input)))
        self._looks.clear()
        return new


def _kept_out(layer: nn.Module) -> Tensor | None:
    """Return how many mini-batches the guard kept out."""
    count = getattr(layer, "non_finite_batches", None)
    return count if isinstance(count, Tensor) else None


def _state(layer: nn.Module) -> Tensor | None:
    """Return in how many channels the running statistics are not finite."""
    running = running_statistics(layer)
    return None if running is None else _not_finite(running[0] + running[1])


def _not_finite(values: Tensor | None) -> Tensor | None:
    """Return in how many channels, the last axis, some of the values are not finite."""
    if values is None:
        return None
    return (~values.isfinite()).reshape(-1, values.shape[-1]).any(0).sum()


def _stacked(counts: list[Tensor | None]) -> Tensor:
    """Return a copy of all counts, 0 for None, on the device of the first."""
    device = next((count.device for count in counts if count is not None), None)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return torch.stack([zero if count is None else count.to(zero) for count in counts])
