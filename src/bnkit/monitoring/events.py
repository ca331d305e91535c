"""`Events`: NaN and infinities that reached a batch norm, also between two records."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bnkit.monitoring.measuring import running_statistics
from bnkit.monitoring.record import NonFinite


@dataclass(frozen=True, eq=False)
class _Look:
    """The counts of each layer after the steps `first` to `last`.

    It is what the guard kept out, what is finite where the state is, and the input's variance.
    """

    first: int
    last: int
    seen: Mapping[str, tuple[Tensor | int, Tensor | None, Tensor | None]]


class Events:
    """What the layers keep of non-finite mini-batches, looked at now and then.

    bnkit's guard counts them, and running statistics that a NaN or an infinity has entered never
    lose it again, so a look every hundred steps misses none; of layers without either, only the
    inputs in the steps that are looked at are known.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._next_step = 0
        self._looks: list[_Look] = []
        self._found: list[NonFinite] = []
        self._known = {path: (int(_kept_out(layer)), 0) for path, layer in layers.items()}

    def look(self, last: int, variances: Mapping[str, Tensor]) -> None:
        """Look at the layers after the step `last`, with the variances of what it gave them."""
        if last < self._next_step:
            return  # nothing has run since
        seen = {
            path: (_kept_out(layer), _state(layer), variances.get(path))
            for path, layer in self._layers.items()
        }
        self._looks.append(_Look(self._next_step, last, seen))
        self._next_step = last + 1

    def found(self) -> tuple[NonFinite, ...]:
        """Return all events so far; on a GPU this waits for it."""
        for look in self._looks:
            self._found += self._events_of(look)
        self._looks.clear()
        return tuple(self._found)

    def _events_of(self, look: _Look) -> Iterator[NonFinite]:
        for path, (count, state, variance) in look.seen.items():
            kept_out, in_state, in_input = int(count), _not_finite(state), _not_finite(variance)
            kept_out_before, in_state_before = self._known[path]
            self._known[path] = (kept_out, in_state)
            batches = max(0, kept_out - kept_out_before)
            if batches or in_input or in_state > in_state_before:
                yield NonFinite(path, look.first, look.last, batches, max(in_state, in_input))


def _kept_out(layer: nn.Module) -> Tensor | int:
    count = getattr(layer, "non_finite_batches", None)
    return count.clone() if isinstance(count, Tensor) else 0


def _state(layer: nn.Module) -> Tensor | None:
    running = running_statistics(layer)
    return None if running is None else running[0] + running[1]


def _not_finite(values: Tensor | None) -> int:
    """Return in how many channels, the last axis, some of the values are not finite."""
    if values is None:
        return 0
    return int((~values.isfinite()).reshape(-1, values.shape[-1]).any(0).sum())
