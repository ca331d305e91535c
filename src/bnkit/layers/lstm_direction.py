"""One direction of one layer of an LSTM: its arithmetic, how sequences lie, what it refuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.layers.per_step import PerStepBatchNorm1d

State = tuple[Tensor, Tensor]  # h (N, projection or hidden size) and c (N, hidden size)


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


class Direction(NamedTuple):
    """The parameters and batch norms of one direction; gates in torch's order i, f, g, o."""

    weight_ih: Tensor  # (4 · hidden, input)
    weight_hh: Tensor  # (4 · hidden, hidden), or (4 · hidden, projection)
    weight_hr: Tensor | None  # (projection, hidden)
    bias: Tensor | None  # (4 · hidden,), the sum of torch's two
    batchnorm_ih: PerStepBatchNorm1d
    batchnorm_hh: PerStepBatchNorm1d
    batchnorm_c: PerStepBatchNorm1d

    @classmethod
    def of(cls, module: nn.Module, suffix: str = "") -> "Direction":
        """Return the direction whose parts have this suffix in the module, as "_l0_reverse"."""
        bias_ih, bias_hh = (getattr(module, f"{name}{suffix}", None) for name in _BIASES)
        return cls(
            getattr(module, f"weight_ih{suffix}"),
            getattr(module, f"weight_hh{suffix}"),
            getattr(module, f"weight_hr{suffix}", None),
            None if bias_ih is None else bias_ih + bias_hh,
            *(getattr(module, f"{name}{suffix}") for name in _NORMS),
        )

    @property
    def norms(self) -> tuple[PerStepBatchNorm1d, PerStepBatchNorm1d, PerStepBatchNorm1d]:
        """The three batch norms: of W_ih x, of W_hh h, of c."""
        return self.batchnorm_ih, self.batchnorm_hh, self.batchnorm_c

    def run(
        self, data: Tensor, packing: Packing, state: State, *, first_step: int = 0
    ) -> tuple[Tensor, State]:
        """Return all h of packed `data`, (cells, features), and each sequence's last h and c."""
        taken = [norm.of_steps(first_step, packing.steps) for norm in self.norms]
        gates = self._input_gates(data, packing, taken[0])
        outputs, ended = [], []
        for of_input, hh, c in zip(gates, _by_step(taken[1]), _by_step(taken[2]), strict=True):
            rows = len(of_input)
            if rows < len(state[0]):  # the shortest sequences lie last
                ended.append((state[0][rows:], state[1][rows:]))
                state = state[0][:rows], state[1][:rows]
            state = self._next_state(of_input, state, hh, c)
            outputs.append(state[0])
        shared = packing.shared_steps
        for norm, (mean, variance) in zip(self.norms, taken, strict=True):
            norm.track(mean[:shared], variance[:shared], first_step)
        return torch.cat(outputs), _joined([state, *reversed(ended)])

    def _input_gates(self, data: Tensor, packing: Packing, taken: State) -> list[Tensor]:
        """Return BN(W_ih x; γ_ih) + b of each step, (rows, 4 · hidden): one product for all."""
        products = packing.split(F.linear(packing.by_sequence(data), self.weight_ih))
        gates: list[Tensor] = []
        for run, product in zip(packing.runs, products, strict=True):
            steps = slice(run.first_step, run.first_step + run.steps)
            values = product.view(run.rows, run.steps, product.shape[1]).transpose(1, 2)
            normalised = self.batchnorm_ih(values, taken[0][steps], taken[1][steps], self.bias)
            gates += normalised.transpose(1, 2).unbind(1)  # as in memory, or its gradient is slow
        return gates

    def _next_state(self, of_input: Tensor, state: State, taken_hh: State, taken_c: State) -> State:
        h, c = state
        gates = of_input + self.batchnorm_hh(F.linear(h, self.weight_hh), *taken_hh)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # not normalised, so that gradients last
        h = o.sigmoid() * self.batchnorm_c(c, *taken_c, activation="tanh")
        return (h if self.weight_hr is None else F.linear(h, self.weight_hr)), c


_BIASES = ("bias_ih", "bias_hh")
_NORMS = ("batchnorm_ih", "batchnorm_hh", "batchnorm_c")


class NormOptions(TypedDict, total=False):
    """The options of a recurrent layer that go to each of its batch norms."""

    eps: float
    momentum: float | None
    guard: bool


def add_batch_norms(
    module: nn.RNNBase | nn.RNNCellBase,
    suffix: str = "",
    *,
    max_steps: int,
    **options: Unpack[NormOptions],
) -> None:
    """Add the three batch norms of a direction to its module: β only for that of c."""
    like = getattr(module, f"weight_ih{suffix}")
    for name in _NORMS:
        of_cell = name == "batchnorm_c"
        norm = PerStepBatchNorm1d(
            module.hidden_size if of_cell else 4 * module.hidden_size,
            max_steps=max_steps,
            bias=of_cell,
            device=like.device,
            dtype=like.dtype,
            **options,
        )
        module.add_module(f"{name}{suffix}", norm)


def reset_parameters(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """Draw weights from U(−1/√hidden, 1/√hidden), as torch does, and reset the batch norms."""
    bound = module.hidden_size**-0.5
    for parameter in module.parameters(recurse=False):
        nn.init.uniform_(parameter, -bound, bound)
    for norm in module.children():
        if isinstance(norm, PerStepBatchNorm1d):
            norm.reset_parameters()


def _by_step(taken: State) -> list[State]:
    return list(zip(taken[0].unbind(0), taken[1].unbind(0), strict=True))


def _joined(states: list[State]) -> State:
    if len(states) == 1:
        return states[0]
    h, c = zip(*states, strict=True)
    return torch.cat(h), torch.cat(c)


# --- what is refused, with what to do about it


def check_features(module: nn.RNNBase | nn.RNNCellBase, input: Tensor, weight: Tensor) -> None:
    """Raise RuntimeError for a wrong number of features, ValueError for another dtype."""
    if input.shape[-1] != module.input_size:
        raise RuntimeError(
            f"`input` of shape {tuple(input.shape)} has {input.shape[-1]} features on its last "
            f"axis, and input_size is {module.input_size}: make them equal"
        )
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise ValueError(
            f"`input` is {input.dtype} and the weights are {weight.dtype}: convert one of them, as "
            f"in input.to({weight.dtype})"
        )


def check_batch(module: nn.Module, input: Tensor, sequences: int) -> None:
    """Raise ValueError where batch norms in training get too few sequences for a variance."""
    norms = [child for child in module.children() if isinstance(child, PerStepBatchNorm1d)]
    if sequences < 2 and any(norm.needs_batch for norm in norms):
        raise ValueError(
            f"`input` of shape {tuple(input.shape)} has {sequences} sequence(s), of which training "
            f"can take no variance: use a larger mini-batch, drop the last incomplete one "
            f"(drop_last=True of a DataLoader), or call .eval() on the layer"
        )


def check_state(
    hx: tuple[Tensor, Tensor], shape_h: tuple[int, ...], shape_c: tuple[int, ...]
) -> None:
    """Raise RuntimeError where h or c of `hx` has another shape than those."""
    for name, values, shape in zip("hc", hx, (shape_h, shape_c), strict=True):
        if values.shape != shape:
            raise RuntimeError(
                f"`hx` has {name} of shape {tuple(values.shape)}: this layer and input need {shape}"
            )


def checked_lengths(lengths: Tensor | Sequence[int], *, sequences: int, steps: int) -> Tensor:
    """Return `lengths` as a tensor on the CPU; raise ValueError unless each is 1 to `steps`."""
    given = torch.as_tensor(lengths).cpu()
    if given.shape != (sequences,) or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(
            f"`lengths` is {given.dtype} of shape {tuple(given.shape)}: give one integer for each "
            f"of the {sequences} sequences"
        )
    wrong = [length for length in given.tolist() if not 1 <= length <= steps]
    if wrong:
        raise ValueError(
            f"`lengths` contains {wrong[0]}, and the input has {steps} steps: give 1 to {steps}; "
            f"leave empty sequences out of the mini-batch"
        )
    return given
