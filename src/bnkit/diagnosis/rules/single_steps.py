"""Batch norms that exported programs compute in single steps: subtract, multiply, add.

So Keras writes each of them, on every backend, and torch those that it decomposes. No tool behind
the export takes the steps for a batch norm, so that none folds them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One operation of a program, by the names of the values that it reads and of what it makes.

    `path` is that of the layer from which it was exported, "" where the program does not say.
    """

    operation: str
    reads: tuple[str, ...]
    makes: str
    path: str = ""


# Names of torch, those in place with a line after them, and of ONNX, in small letters.
_SUBTRACT = ("sub", "subtract")
_MULTIPLY = ("mul", "multiply")
_ADD = ("add",)
_ROOTS = ("rsqrt", "sqrt")
# What only lays out values, or their dtype, in another way.
_LAYOUT = frozenset(
    "_to_copy alias cast clone contiguous expand identity permute reshape squeeze to transpose "
    "unsqueeze view".split()
)
_NOTHING = "_assert_tensor_metadata"


def batch_norms_in_steps(
    steps: Iterable[Step], given: Iterable[str], is_weights: Callable[[str], bool]
) -> Iterator[tuple[Step, str]]:
    """Yield the multiplication of each batch norm in steps, and the operation that feeds it.

    `given` are the values that the program is called with. A batch norm in inference is a
    subtraction of a stored value, then a multiplication by one; and either that comes from a square
    root of stored values, or an operation that `is_weights` alone feeds the subtraction, which can
    take both in, whatever they were. The feeder is "" for none.

    >>> steps = [Step("conv2d", ("x", "kernel"), "a"), Step("sub", ("a", "mean"), "b"),
    ...          Step("rsqrt", ("variance",), "r"), Step("mul", ("b", "r"), "c")]
    >>> [(step.makes, by) for step, by in batch_norms_in_steps(steps, ["x"], "conv2d".__eq__)]
    [('c', 'conv2d')]
    """
    program = _Program([step for step in steps if step.operation != _NOTHING], set(given))
    for step in program.steps:
        if _plain(step) not in _SUBTRACT or not program.takes_a_stored_value(step):
            continue
        scaled = program.reader(step)
        if scaled is None or _plain(scaled) not in _MULTIPLY:
            continue
        feeder = program.feeder(step, is_weights)
        if program.takes_a_stored_value(scaled) and (feeder or program.takes_a_root(scaled)):
            yield scaled, feeder


class _Program:
    """The steps of a program: who makes and reads values, and which depend on what is given."""

    def __init__(self, steps: list[Step], varying: set[str]) -> None:
        self.steps, self.varying, self.roots = steps, varying, set[str]()
        self.makers = {step.makes: step for step in steps}
        self.readers: dict[str, list[Step]] = defaultdict(list)
        for step in steps:
            if not varying.isdisjoint(step.reads):
                varying.add(step.makes)
            elif _plain(step) in _ROOTS or not self.roots.isdisjoint(step.reads):
                self.roots.add(step.makes)
            for name in set(step.reads):
                self.readers[name].append(step)

    def takes_a_stored_value(self, step: Step) -> bool:
        """Return whether a step has two operands, of which one is stored."""
        return len(step.reads) == 2 and sum(name in self.varying for name in step.reads) == 1

    def takes_a_root(self, step: Step) -> bool:
        return not self.roots.isdisjoint(step.reads)

    def reader(self, step: Step) -> Step | None:
        """Return the step that alone reads what this one makes, whatever lays it out between."""
        readers = self.readers[step.makes]
        if len(readers) != 1:
            return None
        return self.reader(readers[0]) if _plain(readers[0]) in _LAYOUT else readers[0]

    def feeder(self, step: Step, is_weights: Callable[[str], bool]) -> str:
        """Return the operation with weights that alone feeds a step, with its bias at most."""
        (name,) = (name for name in step.reads if name in self.varying)
        before = self.makers.get(name)
        if before is None or len(self.readers[name]) > 1:
            return ""
        if is_weights(before.operation):
            return before.operation
        adds_a_bias = _plain(before) in _ADD and self.takes_a_stored_value(before)
        varying = [name for name in before.reads if name in self.varying]
        goes_on = adds_a_bias or (_plain(before) in _LAYOUT and len(varying) == 1)
        return self.feeder(before, is_weights) if goes_on else ""


def _plain(step: Step) -> str:
    return step.operation.lower().removesuffix("_")
