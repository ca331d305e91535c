"""One direction of one layer of an LSTM: its arithmetic in a time step and along sequences."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.layers.packing import Packing
from bnkit.layers.per_step import PerStepBatchNorm1d

State = tuple[Tensor, Tensor]  # h (N, projection or hidden size) and c (N, hidden size)


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
        h = o.sigmoid() * self.batchnorm_c(c, *taken_c)  # whose activation is tanh
        return (h if self.weight_hr is None else F.linear(h, self.weight_hr)), c


_BIASES = ("bias_ih", "bias_hh")
_NORMS = ("batchnorm_ih", "batchnorm_hh", "batchnorm_c")


def add_batch_norms(
    module: nn.Module,
    hidden_size: int,
    *,
    suffix: str = "",
    max_steps: int,
    eps: float,
    momentum: float | None,
    guard: bool,
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
) -> None:
    """Add the three batch norms of a direction to its module: β only for that of c."""
    for name in _NORMS:
        of_cell = name == "batchnorm_c"
        norm = PerStepBatchNorm1d(
            hidden_size if of_cell else 4 * hidden_size,
            eps,
            momentum,
            max_steps=max_steps,
            bias=of_cell,
            activation="tanh" if of_cell else None,
            guard=guard,
            device=device,
            dtype=dtype,
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
