"""`BatchNormLSTMCell`: torch.nn.LSTMCell with recurrent batch normalization."""

import torch
from torch import Tensor, nn

from bnkit.layers.lstm_checks import check_batch, check_features, check_state
from bnkit.layers.lstm_direction import Direction, State, add_batch_norms, reset_parameters
from bnkit.layers.packing import Packing, Run


class BatchNormLSTMCell(nn.RNNCellBase):
    """One time step of a batch-normalised LSTM: torch.nn.LSTMCell, and the number of the step.

    Arguments, parameters, shapes and results are those of torch's, whose weights load with
    strict=False; the equations, the further arguments and the further state are those of
    `bnkit.layers.recurrent.BatchNormLSTM`. `step` counts from 0 at the start of each sequence and
    chooses the running statistics. Every call in training takes in those of its step.

    Raises ValueError for an input that is not 1-D or 2-D or of another dtype than the weights, a
    negative `step`, and in training for fewer than two samples; RuntimeError, as torch's, for
    wrong sizes.

    >>> cell, state = BatchNormLSTMCell(3, 5, max_steps=7), None
    >>> for step, x in enumerate(torch.randn(7, 4, 3)):
    ...     state = cell(x, state, step=step)
    >>> [tuple(part.shape) for part in state]
    [(4, 5), (4, 5)]
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_steps: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        guard: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.max_steps = max_steps
        add_batch_norms(
            self,
            hidden_size,
            max_steps=max_steps,
            eps=eps,
            momentum=momentum,
            guard=guard,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew as torch.nn.LSTMCell does, and reset the batch norms."""
        reset_parameters(self)

    def forward(self, input: Tensor, hx: State | None = None, *, step: int) -> State:
        """Return h and c after time step `step`, counted from 0: (N, hidden size) each."""
        if step < 0:
            raise ValueError(f"`step` is {step}: count the steps of a sequence from 0")
        if input.dim() == 1:
            state = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
            h, c = self.forward(input.unsqueeze(0), state, step=step)
            return h.squeeze(0), c.squeeze(0)
        if input.dim() != 2:
            raise ValueError(
                f"`input` of shape {tuple(input.shape)} is {input.dim()}-D: give (N, input_size) "
                f"or, without mini-batch, (input_size,)"
            )
        check_features(self, input, self.weight_ih)
        check_batch(self, input, len(input))
        _, state = Direction.of(self).run(
            input, Packing((Run(0, 1, len(input)),)), self._state(input, hx), first_step=step
        )
        return state

    def _state(self, input: Tensor, hx: State | None) -> State:
        shape = (len(input), self.hidden_size)
        if hx is None:
            return self.weight_hh.new_zeros(shape), self.weight_hh.new_zeros(shape)
        check_state(hx, shape, shape)
        return hx

    def extra_repr(self) -> str:
        """Return torch's line, and the number of steps."""
        return f"{super().extra_repr()}, max_steps={self.max_steps}"
