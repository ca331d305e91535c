"""`Packing`: how a batch of sequences lies in memory, step after step without padding."""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Neighbouring steps that the same number of sequences reach."""

    first_step: int
    steps: int
    rows: int

    @property
    def cells(self) -> int:
        """How many rows of the packed data the run takes."""
        return self.steps * self.rows


@dataclass(frozen=True)
class Packing:
    """Runs of steps, as torch.nn.utils.rnn.PackedSequence orders them: longest sequence first.

    Packed data is (cells, features): all rows of step 0, then all of step 1, and so on.

    >>> Packing.of(torch.tensor([3, 3, 1])).runs
    (Run(first_step=0, steps=2, rows=3), Run(first_step=2, steps=1, rows=1))
    """

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, batch_sizes: Tensor) -> "Packing":
        """Return the packing of a PackedSequence with these `batch_sizes`, one for each step."""
        runs: list[Run] = []
        for rows, group in groupby(batch_sizes.tolist()):
            first = runs[-1].first_step + runs[-1].steps if runs else 0
            runs.append(Run(first, len(list(group)), rows))
        return cls(tuple(runs))

    @property
    def steps(self) -> int:
        """The length of the longest sequence."""
        return sum(run.steps for run in self.runs)

    @property
    def rows(self) -> int:
        """The number of sequences."""
        return self.runs[0].rows

    @property
    def shared_steps(self) -> int:
        """How many steps at least two sequences reach, so that they have a variance."""
        return sum(run.steps for run in self.runs if run.rows > 1)

    def split(self, data: Tensor) -> tuple[Tensor, ...]:
        """Return the part of each run, (cells of the run, features)."""
        return torch.split(data, [run.cells for run in self.runs])

    def by_sequence(self, data: Tensor) -> Tensor:
        """Return the packed `data` with each run's rows in the order of its sequences.

        Then a run is (rows, steps, features) in memory, and not (steps, rows, features).
        """
        parts = [
            part.view(run.steps, run.rows, *part.shape[1:]).transpose(0, 1).flatten(0, 1)
            for run, part in zip(self.runs, self.split(data), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def reversed(self, data: Tensor) -> Tensor:
        """Return the packed `data` with each sequence running backwards from its own last step.

        So the first step of every sequence, whatever its length, is again step 0.

        >>> Packing.of(torch.tensor([2, 2, 1])).reversed(torch.tensor([10, 20, 11, 21, 12]))
        tensor([12, 21, 11, 20, 10])
        """
        if len(self.runs) == 1:
            return data.view(self.steps, self.rows, *data.shape[1:]).flip(0).flatten(0, 1)
        return data.index_select(0, self._places_reversed().to(data.device))

    def _places_reversed(self) -> Tensor:
        """Return where in packed data each place finds its value; twice it is the identity."""
        sizes = torch.tensor([run.rows for run in self.runs for _ in range(run.steps)])
        starts = sizes.cumsum(0) - sizes  # (steps,), the place of each step's first row
        step = torch.arange(len(sizes)).repeat_interleave(sizes)  # (cells,)
        row = torch.arange(len(step)) - starts[step]
        lengths = (sizes[:, None] > torch.arange(self.rows)).sum(0)  # (rows,)
        return starts[lengths[row] - 1 - step] + row
