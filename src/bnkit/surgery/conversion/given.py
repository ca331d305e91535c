"""`Given`: what a user gives to `convert` for its model to run on: an example, or mini-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bnkit.batches import Call, Inputs, as_example, calls_of, refuse_iterator


@dataclass(frozen=True)
class Given:
    """The `example_or_batches` for a model, in the sense in which they are needed.

    A tensor, a tuple or a dict is an example where one is needed; what else it may be, it is
    mini-batches.
    """

    model: nn.Module
    data: Any
    inputs: Inputs | None = None

    def example(self) -> Any:
        """Return the example, or the first of mini-batches; None if nothing was given.

        >>> Given(nn.Identity(), [3, 4], inputs=lambda x: ((x,), {})).example()
        (3,)
        """
        return None if self.data is None else next(self.examples())

    def examples(self) -> Iterator[Any]:
        """Yield the example, or each of the mini-batches as one."""
        if self.inputs is None and isinstance(self.data, Tensor | tuple | dict):
            yield self.data
        else:
            yield from self.batches()

    def batches(self) -> Iterator[Any]:
        """Yield each of the mini-batches as an example."""
        return (as_example(self.model, call) for call in self.calls())

    def calls(self) -> Iterator[Call]:
        """Yield the calls of the mini-batches."""
        return calls_of(self.model, self.data, inputs=self.inputs)

    def first_of_many(self, to: str) -> Any:
        """Return the first of the mini-batches, by which layers are calibrated to be `to`.

        Raises ValueError where there are none, or where they can be read only once.
        """
        if self.data is None:
            raise ValueError(
                f"`example_or_batches` is None, and layers are calibrated on mini-batches when "
                f"they become {to!r}: pass a DataLoader, or another iterable of mini-batches"
            )
        refuse_iterator(self.data, "calibration passes over them once for each layer")
        return next(self.batches())
